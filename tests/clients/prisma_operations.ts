// What each operation of Prisma's client does over POST /sql with PrismaNeonHttp.
import { Prisma, type PrismaClient } from "./generated/client.ts";
import { clientOf, type Environment } from "./prisma.ts";
import { report } from "./report.mjs";

export default {
  async fetch(_request: Request, env: Environment): Promise<Response> {
    return new Response(await report(checks(clientOf(env))));
  },
};

const sketch = { title: "Sketch", pages: 12, authorId: 2 };
const made = { where: { title: "Sketch" } };

function checks(prisma: PrismaClient) {
  const { author, book } = prisma;
  return {
    findUnique: () => author.findUnique({ where: { id: 1 } }),
    findUniqueOrThrow: () => author.findUniqueOrThrow({ where: { name: "Ada" } }),
    findFirst: () => book.findFirst({ where: { pages: { gt: 100 } }, orderBy: { id: "asc" } }),
    findFirstOrThrow: () => book.findFirstOrThrow({ where: { title: "Notes" } }),
    findMany: () => book.findMany({ orderBy: { id: "asc" }, skip: 1, take: 2 }),
    "findMany with include": () =>
      author.findMany({ include: { books: { orderBy: { id: "asc" } } }, orderBy: { id: "asc" } }),
    "findMany with select": () =>
      book.findMany({
        select: { title: true, author: { select: { name: true } } },
        orderBy: { id: "asc" },
      }),
    "findMany with a relation filter": () =>
      author.findMany({ where: { books: { some: { pages: { gt: 150 } } } } }),
    "findMany with _count": () =>
      author.findMany({ include: { _count: { select: { books: true } } }, orderBy: { id: "asc" } }),
    "findMany with cursor": () =>
      book.findMany({ cursor: { id: 2 }, take: 1, orderBy: { id: "asc" } }),
    "findMany with distinct": () =>
      book.findMany({
        distinct: ["authorId"],
        select: { authorId: true },
        orderBy: { authorId: "asc" },
      }),
    count: () => book.count({ where: { authorId: 1 } }),
    aggregate: () => book.aggregate({ _sum: { pages: true }, _max: { pages: true } }),
    groupBy: () => book.groupBy({ by: ["authorId"], _count: true, orderBy: { authorId: "asc" } }),

    create: () => book.create({ data: sketch, omit: { id: true } }),
    "create with include": () =>
      book.create({ data: sketch, include: { author: true }, omit: { id: true } }),
    "create with select": () => book.create({ data: sketch, select: { title: true } }),
    "create with a nested create": () =>
      author.create({ data: { name: "Nested", books: { create: { title: "A", pages: 1 } } } }),
    "create with a nested createMany": () =>
      author.create({
        data: { name: "Nested", books: { createMany: { data: [{ title: "A", pages: 1 }] } } },
      }),
    "create with connect": () =>
      book.create({
        data: { title: "Sketch", pages: 12, author: { connect: { id: 2 } } },
        omit: { id: true },
      }),
    "create with connect by another unique field": () =>
      book.create({
        data: { title: "Sketch", pages: 12, author: { connect: { name: "Grace" } } },
        omit: { id: true },
      }),
    "create with connectOrCreate": () =>
      book.create({
        data: {
          title: "Sketch",
          pages: 12,
          author: { connectOrCreate: { where: { name: "Grace" }, create: { name: "Grace" } } },
        },
      }),
    createMany: () => book.createMany({ data: [sketch, sketch] }),
    "createMany with skipDuplicates": () =>
      author.createMany({ data: [{ name: "Ada" }], skipDuplicates: true }),
    createManyAndReturn: () =>
      book.createManyAndReturn({ data: [sketch, sketch], omit: { id: true } }),
    "createManyAndReturn with include": () =>
      book.createManyAndReturn({ data: [sketch], include: { author: true }, omit: { id: true } }),

    update: () => book.update({ where: { id: 1 }, data: { pages: 51 } }),
    "update with select": () =>
      book.update({ where: { id: 1 }, data: { pages: 52 }, select: { pages: true } }),
    "update with include": () =>
      book.update({ where: { id: 1 }, data: { pages: 53 }, include: { author: true } }),
    "update by another unique field": () =>
      author.update({ where: { name: "Ada" }, data: { name: "Ada" } }),
    "update with increment": () =>
      book.update({ where: { id: 1 }, data: { pages: { increment: 1 } }, select: { id: true } }),
    "update of a foreign key": () =>
      book.update({ where: { id: 1 }, data: { authorId: 1 }, select: { authorId: true } }),
    "update with connect": () =>
      book.update({ where: { id: 1 }, data: { author: { connect: { id: 1 } } } }),
    "update with a nested create": () =>
      author.update({ where: { id: 2 }, data: { books: { create: { title: "A", pages: 1 } } } }),
    "update with a nested update": () =>
      author.update({
        where: { id: 2 },
        data: { books: { update: { where: { id: 2 }, data: { pages: 201 } } } },
      }),
    "update of a row that is not there": () =>
      book.update({ where: { id: -1 }, data: { pages: 1 } }),
    updateMany: () => book.updateMany({ ...made, data: { pages: 13 } }),
    updateManyAndReturn: () =>
      book.updateManyAndReturn({ where: { id: 2 }, data: { pages: 202 }, select: { pages: true } }),
    "upsert by id": () =>
      author.upsert({ where: { id: 1 }, create: { name: "Ada" }, update: { name: "Ada" } }),
    "upsert by another unique field": () =>
      author.upsert({ where: { name: "Ada" }, create: { name: "Ada" }, update: { name: "Ada" } }),
    delete: async () => {
      const { id } = await book.findFirstOrThrow({ ...made, select: { id: true } });
      return book.delete({ where: { id }, omit: { id: true } });
    },
    "delete with include": async () => {
      const { id } = await book.findFirstOrThrow({ ...made, select: { id: true } });
      return book.delete({ where: { id }, include: { author: true } });
    },
    "delete of a row that is not there": () => book.delete({ where: { id: -1 } }),
    deleteMany: async () => (await book.deleteMany(made)).count > 0,

    $queryRaw: () => prisma.$queryRaw`SELECT ${1}::int AS one, ${"x"} AS word`,
    $queryRawUnsafe: () => prisma.$queryRawUnsafe("SELECT $1::int AS one", 1),
    "$queryRaw of several types": () =>
      prisma.$queryRaw`SELECT 2::int8 = ${2n} AS int8, 1.50::numeric AS "numeric", ${new Date(0)}::timestamptz AS at,
        '{"a":1}'::jsonb AS json, ARRAY[1, 2] AS numbers, NULL AS nothing`,
    $executeRaw: () =>
      prisma.$executeRaw`UPDATE books SET pages = pages WHERE id IN (${Prisma.join([1, 2])})`,
    $executeRawUnsafe: () =>
      prisma.$executeRawUnsafe("UPDATE books SET pages = pages WHERE id = $1", 1),
    "$transaction of an empty array": () => prisma.$transaction([]),
    "$transaction of one operation": () =>
      prisma.$transaction([book.count({ where: { authorId: 1 } })]),
    "$transaction of two operations": () => prisma.$transaction([book.count(), author.count()]),
    "$transaction, interactive": () => prisma.$transaction((tx) => tx.book.count()),

    "failed operations wrote": () => author.count({ where: { name: "Nested" } }),
    "failed statement": () => author.create({ data: { name: "Ada" } }),
    "failed raw statement": () => prisma.$queryRaw`SELECT 1/0`,
  };
}
