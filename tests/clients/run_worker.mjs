// Sends requests to examples/edge/worker.ts in workerd: node run_worker.mjs
import { report } from "./report.mjs";
import { withWorker } from "./workerd.mjs";

const { DATABASE_URL, SQL_ENDPOINT } = process.env;
const source = { entryPoints: [`${import.meta.dirname}/../../examples/edge/worker.ts`] };
const variables = { DATABASE_URL, ...(SQL_ENDPOINT && { SQL_ENDPOINT }) };

await withWorker(source, variables, async (url) => {
  const answer = async (path, body) => {
    const options = body && { method: "POST", body: JSON.stringify(body) };
    const response = await fetch(url + path, options);
    const text = await response.text();
    return { status: response.status, body: text ? JSON.parse(text) : null };
  };
  const sketch = { title: "Sketch", pages: 12, authorId: 2 };
  console.log(
    await report({
      list: () => answer("/books"),
      add: () => answer("/books", sketch),
      "add one without pages": () => answer("/books", { ...sketch, pages: 0 }),
      "another path": () => answer("/"),
    }),
  );
});
