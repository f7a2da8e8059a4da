from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from lambda_pg.sqlalchemy import database  # its import makes the URL known
from sqlalchemy.orm import Mapped, mapped_column

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+lambda_pg://"
db = SQLAlchemy(app)


class Order(db.Model):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@app.post("/orders")
def add():
    db.session.add(Order())
    db.session.commit()
    return {"orders": db.session.query(Order).count()}, 201


@database().bind_lambda_context
def handler(event, context):  # or what your adapter to WSGI makes of `app`
    response = app.test_client().open(event["rawPath"], method=event["httpMethod"])
    return {"statusCode": response.status_code, "body": response.text}
