// Runs checks, one after the other, and reports each with its value or its error as JSON.

export async function report(checks) {
  const found = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      found[name] = { value: await check() };
    } catch (error) {
      found[name] = { error: plain(error) };
    }
  }
  return JSON.stringify(found);
}

// An Error's own properties, and its name and message, which JSON leaves out.
function plain(error) {
  const { sourceError, cause, ...properties } = error;
  const inner = cause ?? sourceError;
  return {
    name: error.name,
    message: error.message,
    ...properties,
    ...(inner && { cause: plain(inner) }),
  };
}
