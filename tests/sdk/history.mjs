import assert from "node:assert/strict";

import {
  connected,
  dataOf,
  pack,
  publish,
  record,
  rejection,
  scenario,
  subscribed,
  token,
  unique,
} from "./kit.mjs";

/** A subscription to a topic that keeps the numbers from 1 to `size`. */
async function filled(t, size = 10, namespace = "test") {
  const topic = unique(namespace);
  for (let number = 1; number <= size; number++) await publish(topic, number);
  return subscribed(await connected(t), topic);
}

const offsetsOf = ({ publications }) => publications.map(({ offset }) => offset);

scenario("without a limit it is the position alone", async (t) => {
  const subscription = await filled(t);

  const history = await subscription.history();

  assert.deepEqual([history.publications, history.offset], [[], 10]);
  assert.ok(history.epoch);
});

scenario("a topic without publications has a position, too", async (t) => {
  const subscription = await filled(t, 0);

  const history = await subscription.history({ limit: 10 });

  assert.deepEqual([history.publications, history.offset], [[], 0]);
  assert.ok(history.epoch);
});

scenario("a limit bounds it, and -1 is for all", async (t) => {
  const subscription = await filled(t);

  const [first, all] = [await subscription.history({ limit: 3 }), await subscription.history({ limit: -1 })];

  assert.deepEqual([offsetsOf(first), dataOf(first.publications)], [[1, 2, 3], [1, 2, 3]]);
  assert.deepEqual(offsetsOf(all), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual([first.offset, first.epoch], [10, all.epoch]);
});

scenario("reversed it begins with the newest", async (t) => {
  const subscription = await filled(t);

  const { epoch, ...newest } = await subscription.history({ limit: 3, reverse: true });
  const before = await subscription.history({ limit: 3, reverse: true, since: { offset: 8, epoch } });

  assert.deepEqual([offsetsOf(newest), offsetsOf(before)], [[10, 9, 8], [7, 6, 5]]);
});

scenario("it is read page by page", async (t) => {
  const subscription = await filled(t);
  const { epoch } = await subscription.history();
  const pages = [];
  let since = { offset: 0, epoch };

  for (;;) {
    const page = offsetsOf(await subscription.history({ limit: 4, since }));
    if (page.length === 0) break;
    pages.push(page);
    since = { offset: page.at(-1), epoch };
  }

  assert.deepEqual(pages, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]);
});

scenario("of a position in another run there is none", async (t) => {
  const subscription = await filled(t, 1);

  const error = await rejection(subscription.history({ limit: 1, since: { offset: 0, epoch: "another" } }));

  assert.equal(error.code, 112);
});

scenario("what a topic no longer keeps is not there", async (t) => {
  const subscription = await filled(t, 5, "smallhistory");

  assert.deepEqual(offsetsOf(await subscription.history({ limit: 100 })), [4, 5]);
});

scenario("it tells who published", async (t) => {
  const client = await connected(t, { token: token({ sub: "ana" }) });
  const subscription = await subscribed(client, unique("test"));
  const publications = record(subscription, "publication");
  await subscription.publish(pack({ a: 1 }));
  const live = await publications.next();

  const { publications: kept } = await subscription.history({ limit: 1 });

  assert.deepEqual(kept, [live]);
  assert.equal(live.info.user, "ana");
});
