/** GET /orders and POST /orders, behind the JWT authorizer; each caller sees their own orders. */

import { OutcomeUnknownError, transaction, UnavailableError } from "./db.js";

type Event = {
  routeKey: string;
  body?: string;
  requestContext: { authorizer: { jwt: { claims: { sub: string } } } };
};
type Order = { id: string; total: number };
type Answer = { statusCode: number; headers?: Record<string, string>; body?: string };

export async function handler(event: Event): Promise<Answer> {
  const { claims } = event.requestContext.authorizer.jwt;
  try {
    if (event.routeKey === "POST /orders") {
      const order = JSON.parse(event.body ?? "") as Order;
      await add(claims, order);
      return { statusCode: 201, body: JSON.stringify(order) };
    }
    return { statusCode: 200, body: JSON.stringify(await list(claims)) };
  } catch (error) {
    if (error instanceof UnavailableError || error instanceof OutcomeUnknownError) {
      console.error(error);
      const body = JSON.stringify({ message: error.message });
      return { statusCode: 503, headers: { "Retry-After": "1" }, body };
    }
    throw error;
  }
}

/** The client chooses the id: it may repeat a request of which it does not know the outcome. */
async function add(claims: { sub: string }, { id, total }: Order): Promise<void> {
  const insert = "INSERT INTO orders (id, owner, total) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
  await transaction(claims, (client) => client.query(insert, [id, claims.sub, total]));
}

async function list(claims: { sub: string }): Promise<Order[]> {
  const select = "SELECT id, total FROM orders ORDER BY id LIMIT 100";
  return transaction(claims, async (client) => (await client.query<Order>(select)).rows);
}
