// Runs the scenarios of the files that are given.

import { run } from "./kit.mjs";

for (const file of process.argv.slice(2)) await import(file);
run();
