// Calls the functions of examples/edge/prisma.ts, which a test copies beside this file.
import { addAuthor, addBook, booksOf } from "./prisma.ts";
import { report } from "./report.mjs";

console.log(
  await report({
    "books of an author": () => booksOf("Ada"),
    "add an author twice": async () => (await addAuthor("Edsger")) === (await addAuthor("Edsger")),
    "add a book": async () => ({
      ...(await addBook("Edsger", "Notes", 30)),
      id: null,
      authorId: null,
    }),
    "books of the author": async () => (await booksOf("Edsger")).map(({ title }) => title),
    "books of nobody": () => booksOf("Nobody"),
  }),
);
