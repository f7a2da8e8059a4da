"""The CDK app of this project: one stage, with the settings of its block in cdk.json."""

from aws_cdk import App

from lambda_pg_cdk.stacks.app import build

app = App()
build(app)
app.synth()
