// Prisma over HTTP, with the models of schema.prisma. Generate the client first:
//
//   npx prisma generate --schema schema.prisma
//
// An operation that asks for a transaction fails in the client: docs/edge.md lists each of them.
// What `create` cannot do with `connect` or `include` takes two operations here.

import { neonConfig } from "@neondatabase/serverless";
import { PrismaNeonHttp } from "@prisma/adapter-neon";
import { PrismaClient, type Book } from "./generated/client.ts";

// The line that a custom domain makes unnecessary (docs/edge.md).
if (process.env.SQL_ENDPOINT)
  neonConfig.fetchEndpoint = process.env.SQL_ENDPOINT;
const adapter = new PrismaNeonHttp(process.env.DATABASE_URL ?? "", {});
const prisma = new PrismaClient({ adapter });

export async function booksOf(author: string): Promise<Book[]> {
  const found = await prisma.author.findUnique({
    where: { name: author },
    include: { books: { orderBy: { id: "asc" } } },
  });
  return found?.books ?? [];
}

// One statement: it is atomic as it is.
export async function addAuthor(name: string): Promise<number> {
  const { id } = await prisma.author.upsert({
    where: { name },
    create: { name },
    update: { name },
  });
  return id;
}

export async function addBook(
  author: string,
  title: string,
  pages: number,
): Promise<Book> {
  return prisma.book.create({
    data: { title, pages, authorId: await addAuthor(author) },
  });
}
