// Next.js middleware in the edge runtime: a table redirects old links.
//
//   CREATE TABLE redirects (path text PRIMARY KEY, target text NOT NULL);
//
// In Next.js 16, proxy.ts replaces middleware.ts and runs in Node.js: rename file and function.
// A key of the trust level `reader` is enough.

import { neon, neonConfig } from "@neondatabase/serverless";

// Not needed with a custom domain name (docs/edge.md).
if (process.env.SQL_ENDPOINT) neonConfig.fetchEndpoint = process.env.SQL_ENDPOINT;
const sql = neon(process.env.DATABASE_URL ?? "");

export const config = { matcher: "/old/:path*" };

export async function middleware(request: Request): Promise<Response | undefined> {
  const { pathname } = new URL(request.url);
  try {
    const [row] = await sql`SELECT target FROM redirects WHERE path = ${pathname}`;
    return row && Response.redirect(new URL(row.target, request.url), 308);
  } catch (error) {
    console.error("the redirect could not be looked up:", error);
    return undefined; // serve the page without a redirect
  }
}
