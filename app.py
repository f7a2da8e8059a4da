"""The CDK app of this project: one stage, with the settings of its block in cdk.json."""

from aws_cdk import App

import lambda_pg_cdk

stage = lambda_pg_cdk.Stage(App())
stage.synth()
