// A Cloudflare-style Worker: GET /books, and POST /books with {"title", "pages", "authorId"}.
//
// It needs a key of the trust level `writer`.

import { neon, neonConfig, NeonDbError } from "@neondatabase/serverless";

interface Environment {
  DATABASE_URL: string; // a secret: wrangler secret put DATABASE_URL
  SQL_ENDPOINT?: string;
}

interface NewBook {
  title: string;
  pages: number;
  authorId: number;
}

export default {
  async fetch(request: Request, env: Environment): Promise<Response> {
    // Not needed with a custom domain name (docs/edge.md).
    if (env.SQL_ENDPOINT) neonConfig.fetchEndpoint = env.SQL_ENDPOINT;
    const sql = neon(env.DATABASE_URL);
    if (new URL(request.url).pathname !== "/books") return new Response(null, { status: 404 });
    try {
      if (request.method !== "POST") {
        return Response.json(await sql`SELECT id, title, pages FROM books ORDER BY id LIMIT 100`);
      }
      const { title, pages, authorId } = (await request.json()) as NewBook;
      const [book] = await sql`INSERT INTO books (title, pages, author_id)
        VALUES (${title}, ${pages}, ${authorId}) RETURNING id, title, pages`;
      return Response.json(book, { status: 201 });
    } catch (error) {
      return refusal(error);
    }
  },
};

// An SQL error has PostgreSQL's `code`. Other errors, such as 503, have none.
function refusal(error: unknown): Response {
  if (!(error instanceof NeonDbError)) throw error;
  if (error.code?.startsWith("22") || error.code?.startsWith("23")) {
    const { message, constraint } = error;
    return Response.json({ message, constraint }, { status: 422 });
  }
  console.error(error.code, error.message);
  return new Response(null, { status: 503, headers: { "Retry-After": "1" } });
}
