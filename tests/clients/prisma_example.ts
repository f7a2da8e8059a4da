// Calls the functions of examples/edge/prisma.ts in a Worker; a test copies it beside that file.
import { addAuthor, addBook, booksOf, clientOf, type Environment } from "./prisma.ts";
import { report } from "./report.mjs";

export default {
  async fetch(_request: Request, env: Environment): Promise<Response> {
    const prisma = clientOf(env);
    const titles = async (name: string) => (await booksOf(prisma, name)).map(({ title }) => title);
    const checks = {
      "books of an author": () => titles("Ada"),
      "add an author twice": async () =>
        (await addAuthor(prisma, "Edsger")) === (await addAuthor(prisma, "Edsger")),
      "add a book": async () => (await addBook(prisma, "Edsger", "Letters", 30)).pages,
      "books of the author": () => titles("Edsger"),
      "books of nobody": () => titles("Nobody"),
    };
    return new Response(await report(checks));
  },
};
