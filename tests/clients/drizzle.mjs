// What Drizzle does over POST /sql: node drizzle.mjs PACKAGE. Relations are declared in two ways:
// `relations` until 0.45, `defineRelations` from 1.0 on.
import { neon, neonConfig } from "@neondatabase/serverless";
import { report } from "./report.mjs";

const name = process.argv[2];
const orm = await import(name);
const { integer, pgTable, text } = await import(`${name}/pg-core`);
const { drizzle } = await import(`${name}/neon-http`);
const { eq, gt, sql } = orm;

const { DATABASE_URL, SQL_ENDPOINT } = process.env;
if (SQL_ENDPOINT) neonConfig.fetchEndpoint = SQL_ENDPOINT;

const authors = pgTable("authors", {
  id: integer().primaryKey().generatedByDefaultAsIdentity(),
  name: text().notNull(),
});
const books = pgTable("books", {
  id: integer().primaryKey().generatedByDefaultAsIdentity(),
  title: text().notNull(),
  authorId: integer("author_id").notNull(),
  pages: integer().notNull(),
});

const client = neon(DATABASE_URL);
const db = orm.defineRelations ? withRelations() : withSchema();

function withRelations() {
  const tables = { authors, books };
  const relations = orm.defineRelations(tables, (r) => ({
    authors: { books: r.many.books() },
    books: { author: r.one.authors({ from: r.books.authorId, to: r.authors.id }) },
  }));
  return drizzle({ client, relations });
}

function withSchema() {
  const authorsRelations = orm.relations(authors, ({ many }) => ({ books: many(books) }));
  const booksRelations = orm.relations(books, ({ one }) => ({
    author: one(authors, { fields: [books.authorId], references: [authors.id] }),
  }));
  return drizzle({ client, schema: { authors, books, authorsRelations, booksRelations } });
}

const nobody = { title: "Nothing", authorId: 1, pages: 0 };
console.log(
  await report({
    select: () => db.select().from(books).where(gt(books.pages, 100)).orderBy(books.id),
    join: () =>
      db
        .select({ title: books.title, author: authors.name })
        .from(books)
        .innerJoin(authors, eq(books.authorId, authors.id))
        .orderBy(books.id),
    "insert returning": () =>
      db
        .insert(books)
        .values({ title: "Sketch", authorId: 2, pages: 12 })
        .returning({ title: books.title, pages: books.pages }),
    "update returning": () =>
      db
        .update(books)
        .set({ pages: sql`${books.pages} + 1` })
        .where(eq(books.title, "Sketch"))
        .returning({ pages: books.pages }),
    "relational query": () =>
      db.query.authors.findMany({
        with: {
          books: {
            columns: { title: true },
            ...(orm.defineRelations ? { orderBy: { id: "asc" } } : { orderBy: books.id }),
          },
        },
        ...(orm.defineRelations ? { orderBy: { id: "asc" } } : { orderBy: authors.id }),
      }),
    batch: () =>
      db.batch([
        db.insert(authors).values({ name: "Edsger" }).returning({ name: authors.name }),
        db.select({ name: authors.name }).from(authors).orderBy(authors.name),
        db.query.books.findFirst({
          columns: { title: true },
          where: orm.defineRelations ? { id: 1 } : eq(books.id, 1),
        }),
      ]),
    "failed batch": () =>
      db.batch([db.insert(authors).values({ name: "Nobody" }), db.insert(books).values(nobody)]),
    "failed batch left nothing": () => db.$count(authors, eq(authors.name, "Nobody")),
    execute: async () => (await db.execute(sql`SELECT ${1}::int AS one`)).rows,
    delete: () =>
      db.delete(books).where(eq(books.title, "Sketch")).returning({ title: books.title }),
    "failed statement": () => db.insert(books).values(nobody),
    transaction: () => db.transaction((tx) => tx.select().from(books)),
  }),
);
