from fastapi import FastAPI
from fastapi.responses import JSONResponse
from lambda_pg import Database, DatabaseUnavailableError
from mangum import Mangum

db = Database.from_env()
app = FastAPI()


@app.get("/orders")
def orders():  # a plain def: FastAPI runs it in a thread
    return db.execute("SELECT id FROM orders ORDER BY id", idempotent=True).fetchall()


@app.exception_handler(DatabaseUnavailableError)
def unavailable(request, error):
    return JSONResponse({}, 503, {"Retry-After": str(max(1, round(error.retry_after)))})


adapter = Mangum(app, lifespan="off")


@db.bind_lambda_context
def handler(event, context):
    return adapter(event, context)
