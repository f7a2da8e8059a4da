// Next.js middleware in the edge runtime: a table redirects old links.
//
//   CREATE TABLE redirects (path text PRIMARY KEY, target text NOT NULL);
//
// In Next.js 16, proxy.ts replaces this file and runs in Node.js: rename the file and the function.
// A key of role `reader` is enough.

import { neon, neonConfig } from "@neondatabase/serverless";

// The line that a custom domain makes unnecessary (docs/edge.md).
if (process.env.SQL_ENDPOINT) neonConfig.fetchEndpoint = process.env.SQL_ENDPOINT;
const sql = neon(process.env.DATABASE_URL ?? "");

export const config = { matcher: "/old/:path*" };

export async function middleware(request: Request): Promise<Response | undefined> {
  const { pathname } = new URL(request.url);
  try {
    const [row] = await sql`SELECT target FROM redirects WHERE path = ${pathname}`;
    return row && Response.redirect(new URL(row.target, request.url), 308);
  } catch (error) {
    console.error("no redirect could be looked up:", error);
    return undefined; // the page is served without its database
  }
}
