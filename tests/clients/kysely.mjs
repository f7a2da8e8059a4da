// What Kysely does over POST /sql with kysely-neon.
import { neon, neonConfig } from "@neondatabase/serverless";
import { Kysely, sql } from "kysely";
import { NeonDialect } from "kysely-neon";
import { report } from "./report.mjs";

const { DATABASE_URL, SQL_ENDPOINT } = process.env;
if (SQL_ENDPOINT) neonConfig.fetchEndpoint = SQL_ENDPOINT;

const db = new Kysely({ dialect: new NeonDialect({ neon: neon(DATABASE_URL) }) });
const sketch = { title: "Sketch", author_id: 2, pages: 12 };

console.log(
  await report({
    node: () => Number.parseInt(process.versions.node),
    select: () =>
      db
        .selectFrom("books")
        .select(["id", "title"])
        .where("pages", ">", 100)
        .orderBy("id")
        .execute(),
    join: () =>
      db
        .selectFrom("books as b")
        .innerJoin("authors as a", "a.id", "b.author_id")
        .select(["b.title", "a.name"])
        .orderBy("b.id")
        .execute(),
    "insert returning": () =>
      db.insertInto("books").values(sketch).returning(["title", "pages"]).execute(),
    "rows of an update": async () => {
      const { numUpdatedRows } = await db
        .updateTable("books")
        .set({ pages: 13 })
        .where("title", "=", "Sketch")
        .executeTakeFirst();
      return Number(numUpdatedRows);
    },
    "rows of a delete": async () => {
      const { numDeletedRows } = await db
        .deleteFrom("books")
        .where("title", "=", "Sketch")
        .executeTakeFirst();
      return Number(numDeletedRows);
    },
    raw: async () => (await sql`SELECT ${1}::int AS one`.execute(db)).rows,
    "failed statement": () => db.insertInto("authors").values({ name: "Ada" }).execute(),
    transaction: () =>
      db.transaction().execute((tx) => tx.selectFrom("books").selectAll().execute()),
    stream: async () => {
      for await (const row of db.selectFrom("books").select("id").stream()) return row;
    },
  }),
);
