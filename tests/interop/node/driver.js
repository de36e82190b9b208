'use strict';
// A program for ali-ons, as tests/interop/foreign.py asks for it:
//
//     driver.js send NAMESRV TOPIC COUNT                  each message once, eight at a time; what failed is told
//     driver.js push NAMESRV TOPIC GROUP COUNT SECONDS    push consumer until COUNT distinct bodies or SECONDS
//
// JSON lines on standard output, the last one a summary.

const http = require('node:http');
const { Consumer, Message, Producer } = require('ali-ons');

const SENDERS = 8;
const say = (fields) => process.stdout.write(JSON.stringify(fields) + '\n');
const quiet = { debug() {}, info() {}, warn() {}, error() {} };
// It wants an HTTP client for the vendor's address page; with `nameSrv` there is nothing to ask.
const common = (nameSrv) => ({ nameSrv, httpclient: { request: http.request }, logger: quiet });

async function send(nameSrv, topic, count) {
  const producer = new Producer({ ...common(nameSrv), producerGroup: 'NODE_PRODUCER' });
  producer.on('error', () => {});
  await producer.ready();
  let next = 0;
  let done = 0;
  const failed = [];
  async function sender() {
    while (next < count) {
      const body = `body-${next}`;
      const message = new Message(topic, 'TagA', body);
      message.keys = [`key-${next++}`];
      try {
        const result = await producer.send(message);
        if (result.sendStatus !== 'SEND_OK') throw new Error(result.sendStatus);
      } catch (error) {
        failed.push(body);
        say({ event: 'error', body, error: error.message });
      }
      if (++done % 100 === 0) say({ event: 'sent', count: done });
    }
  }
  await Promise.all(Array.from({ length: SENDERS }, sender));
  say({ event: 'done', failed });
  process.exit(0);
}

async function push(nameSrv, topic, consumerGroup, count, seconds) {
  const consumer = new Consumer({ ...common(nameSrv), consumerGroup, consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET' });
  consumer.on('error', () => {});
  const seen = new Map();
  let enough;
  const finished = new Promise((resolve) => { enough = resolve; });
  consumer.subscribe(topic, 'TagA || TagB', async (message) => {
    const body = message.body.toString();
    seen.set(body, (seen.get(body) ?? 0) + 1);
    if (seen.size >= count) enough();
  });
  await consumer.ready();
  say({ event: 'started' });
  setTimeout(enough, seconds * 1000);
  await finished;
  await new Promise((resolve) => setTimeout(resolve, 500));
  const deliveries = [...seen.values()].reduce((sum, times) => sum + times, 0);
  say({ event: 'done', deliveries, bodies: [...seen.keys()] });
  process.exit(0);
}

const [what, ...rest] = process.argv.slice(2);
if (what === 'send') send(rest[0], rest[1], Number(rest[2]));
else push(rest[0], rest[1], rest[2], Number(rest[3]), Number(rest[4]));
