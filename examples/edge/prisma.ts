// Prisma in an edge runtime, with the models of schema.prisma. Generate the client first:
//
//   npx prisma generate --schema schema.prisma
//
// An operation that asks for a transaction fails in the client (docs/edge.md lists them).
// So this file uses two operations instead of `create` with `connect` or `include`.

import { neonConfig } from "@neondatabase/serverless";
import { PrismaNeonHttp } from "@prisma/adapter-neon";
import { PrismaClient, type Book } from "./generated/client.ts";

export interface Environment {
  DATABASE_URL: string;
  SQL_ENDPOINT?: string;
}

// A Worker gets its variables in `env` of each request; elsewhere pass process.env.
export function clientOf(env: Environment): PrismaClient {
  // Not needed with a custom domain name (docs/edge.md).
  if (env.SQL_ENDPOINT) neonConfig.fetchEndpoint = env.SQL_ENDPOINT;
  return new PrismaClient({ adapter: new PrismaNeonHttp(env.DATABASE_URL, {}) });
}

export async function booksOf(prisma: PrismaClient, author: string): Promise<Book[]> {
  const found = await prisma.author.findUnique({
    where: { name: author },
    include: { books: { orderBy: { id: "asc" } } },
  });
  return found?.books ?? [];
}

// By a unique name, upsert is one statement, INSERT … ON CONFLICT. By id it needs a transaction.
export async function addAuthor(prisma: PrismaClient, name: string): Promise<number> {
  const { id } = await prisma.author.upsert({
    where: { name },
    create: { name },
    update: { name },
  });
  return id;
}

export async function addBook(
  prisma: PrismaClient,
  author: string,
  title: string,
  pages: number,
): Promise<Book> {
  const authorId = await addAuthor(prisma, author);
  return prisma.book.create({ data: { title, pages, authorId } });
}
