"""The pooler as ECS and a network load balancer run it: tasks, and what stands in front of them."""
