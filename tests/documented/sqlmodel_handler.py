from lambda_pg import Database
from lambda_pg.sqlalchemy import create_engine
from sqlmodel import Field, Session, SQLModel, select

db = Database.from_env()
engine = create_engine(db)


class Order(SQLModel, table=True):
    __tablename__ = "orders"
    id: int | None = Field(default=None, primary_key=True)


@db.bind_lambda_context
def handler(event, context):
    with Session(engine) as session:
        orders = session.exec(select(Order).order_by(Order.id)).all()
        return {"statusCode": 200, "body": str([order.id for order in orders])}
