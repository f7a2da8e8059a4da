# A function that uses the pooler of a deployed lambda-pg.

terraform {
  required_version = ">= 1.5"

  required_providers {
    archive = {
      source  = "hashicorp/archive"
      version = "~> 2.4"
    }
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "stage" {
  type    = string
  default = "dev"
}

variable "concurrency" {
  description = "Environments that the function may have; the stage's functions.other_clients keeps them a place."
  type        = number
  default     = 10
}

provider "aws" {
  region = var.region
}

data "aws_ssm_parameter" "published" {
  for_each = toset([
    "layer/arn",
    "pooler/host",
    "pooler/port",
    "pooler/profile",
    "pooler/security-group",
    "pooler/secret-arn",
    "database/name",
    "network/vpc",
    "network/subnets",
  ])

  name = "/lambda-pg/${var.stage}/${each.key}"
}

data "aws_ssm_parameter" "pooler_ca" {
  count = local.published["pooler/profile"] == "pgbouncer" ? 1 : 0

  name = "/lambda-pg/${var.stage}/pooler/ca"
}

locals {
  # None of them is a secret: `value` would hide them all in the plan.
  published = { for name, parameter in data.aws_ssm_parameter.published : name => parameter.insecure_value }
}

data "archive_file" "code" {
  type        = "zip"
  source_file = "${path.module}/../handler.py"
  output_path = "${path.module}/read-user.zip"
}

resource "aws_lambda_function" "read_user" {
  function_name                  = "read-user-${var.stage}"
  role                           = aws_iam_role.read_user.arn
  filename                       = data.archive_file.code.output_path
  source_code_hash               = data.archive_file.code.output_base64sha256
  handler                        = "handler.handler"
  runtime                        = "python3.13"
  architectures                  = ["arm64"]
  memory_size                    = 512
  timeout                        = 20
  reserved_concurrent_executions = var.concurrency
  layers                         = [local.published["layer/arn"]]

  vpc_config {
    subnet_ids         = split(",", local.published["network/subnets"])
    security_group_ids = [aws_security_group.read_user.id]
  }

  environment {
    variables = {
      PGHOST               = local.published["pooler/host"]
      PGPORT               = local.published["pooler/port"]
      PGDATABASE           = local.published["database/name"]
      PGSSLMODE            = "verify-full"
      PGAPPNAME            = "read-user"
      LAMBDA_PG_PROFILE    = local.published["pooler/profile"]
      LAMBDA_PG_STRICT     = "1"
      LAMBDA_PG_SECRET_ARN = local.published["pooler/secret-arn"]
      LAMBDA_PG_CA_PEM     = join("", data.aws_ssm_parameter.pooler_ca[*].insecure_value)
    }
  }

  depends_on = [aws_iam_role_policy_attachment.network]
}

resource "aws_iam_role" "read_user" {
  name = "read-user-${var.stage}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "lambda.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy_attachment" "network" {
  role       = aws_iam_role.read_user.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"
}

resource "aws_iam_role_policy" "secret" {
  name = "secret"
  role = aws_iam_role.read_user.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = "secretsmanager:GetSecretValue"
      Resource = local.published["pooler/secret-arn"]
    }]
  })
}

resource "aws_security_group" "read_user" {
  description = "Function read-user"
  vpc_id      = local.published["network/vpc"]
}

resource "aws_vpc_security_group_egress_rule" "to_aws" {
  description       = "to the AWS APIs"
  security_group_id = aws_security_group.read_user.id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
}

resource "aws_vpc_security_group_egress_rule" "to_pooler" {
  description                  = "to the pooler"
  security_group_id            = aws_security_group.read_user.id
  ip_protocol                  = "tcp"
  from_port                    = local.published["pooler/port"]
  to_port                      = local.published["pooler/port"]
  referenced_security_group_id = local.published["pooler/security-group"]
}

# The rule is this configuration's: it goes when the function goes, and the pooler's stack never waits.
resource "aws_vpc_security_group_ingress_rule" "into_pooler" {
  description                  = "from read-user"
  security_group_id            = local.published["pooler/security-group"]
  ip_protocol                  = "tcp"
  from_port                    = local.published["pooler/port"]
  to_port                      = local.published["pooler/port"]
  referenced_security_group_id = aws_security_group.read_user.id
}
