// Writes one line of JSON per scenario that has ended: its name, and what was wrong, if anything.

import { inspect } from "node:util";

export default async function* report(events) {
  for await (const { type, data } of events) {
    if (type !== "test:pass" && type !== "test:fail") continue;
    if (data.details.type === "suite") continue;
    const error = data.details.error;
    const wrong = type === "test:pass" ? "" : inspect(error?.cause ?? error, { depth: 6 });
    yield `${JSON.stringify({ name: data.name, wrong })}\n`;
  }
}
