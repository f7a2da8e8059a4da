"""The API of this project: its functions and routes, on one stage of cdk.json."""

from aws_cdk import App

import lambda_pg_cdk

app = App()
stage = lambda_pg_cdk.Stage(app)  # its settings are in cdk.json

orders = stage.new_function("orders", "functions/orders", concurrency=50)
stage.route("GET /orders", orders)
stage.route("POST /orders", orders)
stage.route("GET /orders/{id}", orders)

stage.synth()
