"""The pooler as ECS and a network load balancer run it: tasks, with a balancer in front of them."""
