/**
 * trimq for browsers: send and subscribe over WebSocket. One file, no dependencies, any modern browser (or Node 22+).
 *
 *     import { connect } from "./trimq.js";
 *
 *     const mq = await connect("ws://127.0.0.1:9880");          // the name server's port + 4
 *     await mq.send("orders", "hello", { tag: "paid" });
 *     const orders = await mq.subscribe("orders", { group: "billing" }, async (message) => {
 *       console.log(message.text);
 *     });
 *     await orders.close();
 *     await mq.close();
 *
 * The page's origin must be in `webSocketAllowedOrigins` of name servers and brokers. What it speaks is RocketMQ's
 * remoting protocol, one frame per WebSocket message; to the brokers it is a client like any other, member of a
 * consumer group beside members in other languages. A send is repeated with the same unique id to the same queues'
 * group until it is acknowledged or `timeout` is over, so a failover stores it once; a handler that throws has its
 * message delivered again later (`attempt` counts).
 */

const Code = Object.freeze({
  PULL: 11, QUERY_OFFSET: 14, UPDATE_OFFSET: 15, MAX_OFFSET: 30, HEARTBEAT: 34, UNREGISTER: 35, SEND_BACK: 36,
  CONSUMER_LIST: 38, IDS_CHANGED: 40, ROUTE: 105, SEND: 310,
});
const Answer = Object.freeze({
  OK: 0, FLUSH_DISK_TIMEOUT: 10, SLAVE_NOT_AVAILABLE: 11, FLUSH_SLAVE_TIMEOUT: 12, ILLEGAL: 13, NO_PERMISSION: 16,
  TOPIC_NOT_EXIST: 17, PULL_NOT_FOUND: 19, PULL_RETRY_NOW: 20, PULL_OFFSET_MOVED: 21, QUERY_NOT_FOUND: 22,
});
const STORED = new Set([Answer.OK, Answer.FLUSH_DISK_TIMEOUT, Answer.SLAVE_NOT_AVAILABLE, Answer.FLUSH_SLAVE_TIMEOUT]);
const OK_ONLY = new Set([Answer.OK]);
const FINAL = new Set([Answer.ILLEGAL, Answer.NO_PERMISSION, Answer.TOPIC_NOT_EXIST]);
const TEMPLATE_TOPIC = "TBW102";
const GATEWAY_OFFSET = 4;
const VERSION = 479;
const CONNECT_MS = 3_000;
const REQUEST_MS = 5_000;
const HOLD_MS = 15_000;
const REFRESH_MS = 30_000;
const COMMIT_MS = 5_000;
const PULL_COUNT = 32;
const BODY_MAX_BYTES = 4 * 1024 * 1024;

const utf8 = new TextEncoder();
const text = new TextDecoder();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What went wrong; `code` is the broker's answer, or 0 where none came. */
export class TrimqError extends Error {
  constructor(message, code = 0) {
    super(message);
    this.name = "TrimqError";
    this.code = code;
  }
}

/** The connection was lost, or no answer came: whether the other side acted is not known. */
export class ConnectionLost extends TrimqError {
  constructor(message) {
    super(message);
    this.name = "ConnectionLost";
  }
}

// --- Frames: length, serialize type (0: JSON) and header length, header, body

export function encodeFrame(command, body = new Uint8Array()) {
  const header = utf8.encode(JSON.stringify({
    code: command.code, extFields: command.ext ?? {}, flag: command.flag ?? 0, language: "OTHER",
    opaque: command.opaque ?? 0, serializeTypeCurrentRPC: "JSON", version: VERSION,
  }));
  const frame = new Uint8Array(8 + header.length + body.length);
  const view = new DataView(frame.buffer);
  view.setUint32(0, 4 + header.length + body.length);
  view.setUint32(4, header.length);
  frame.set(header, 8);
  frame.set(body, 8 + header.length);
  return frame;
}

export function decodeFrame(buffer) {
  const view = new DataView(buffer);
  const word = view.getUint32(4);
  if (view.getUint32(0) !== buffer.byteLength - 4 || word >>> 24 !== 0) throw new TrimqError("not a JSON frame");
  const header = JSON.parse(text.decode(new Uint8Array(buffer, 8, word)));
  return {
    code: header.code, flag: header.flag ?? 0, opaque: header.opaque ?? 0, ext: header.extFields ?? {},
    remark: header.remark ?? "", body: new Uint8Array(buffer, 8 + word),
  };
}

// --- Messages as they stand in the log (docs/protocol.md 6.1)

const NAME_END = "\x01";
const PAIR_END = "\x02";

function parseProperties(string) {
  const found = {};
  for (const pair of string.split(PAIR_END)) {
    const at = pair.indexOf(NAME_END);
    if (at > 0 && at < pair.length - 1) found[pair.slice(0, at)] = pair.slice(at + 1);
  }
  return found;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** One message, as handlers get it. */
export class Message {
  constructor(fields) {
    Object.assign(this, fields);
  }
  /** The body as text. */
  get text() {
    return text.decode(this.body);
  }
  /** The body as JSON. */
  get json() {
    return JSON.parse(this.text);
  }
}

export async function decodeMessages(bytes, broker = "") {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const messages = [];
  for (let start = 0; start + 4 <= bytes.length; start += view.getUint32(start)) {
    const sysFlag = view.getInt32(start + 36);
    const wide = (start_) => start_ + ((sysFlag & 0x10) ? 20 : 8);
    let at = wide(start + 48) + 8;
    at += (sysFlag & 0x20) ? 20 : 8;
    const attempts = view.getInt32(at);
    at += 12;
    let body = bytes.subarray(at + 4, at + 4 + view.getInt32(at));
    at += 4 + body.length;
    const long = view.getUint32(start + 4) === 0xDAA320AB;
    const nameBytes = long ? view.getInt16(at) : view.getUint8(at);
    at += long ? 2 : 1;
    const topic = text.decode(bytes.subarray(at, at + nameBytes));
    at += nameBytes;
    const properties = parseProperties(text.decode(bytes.subarray(at + 2, at + 2 + view.getInt16(at))));
    if (sysFlag & 1) {
      if ((sysFlag & 0x700) === 0 || (sysFlag & 0x700) === 0x300) body = await inflate(body);
      else properties.COMPRESSION = (sysFlag & 0x700) === 0x100 ? "lz4" : "zstd"; // browsers cannot: handed over as it is
    }
    messages.push(new Message({
      topic: properties.RETRY_TOPIC ?? topic, body, properties, tag: properties.TAGS ?? null,
      id: properties.UNIQ_KEY ?? "", keys: (properties.KEYS ?? "").split(" ").filter(Boolean),
      broker, queue: view.getInt32(start + 12), offset: Number(view.getBigInt64(start + 20)),
      position: view.getBigInt64(start + 28), bornAt: new Date(Number(view.getBigInt64(start + 40))),
      storedAt: new Date(Number(view.getBigInt64(wide(start + 48)))), attempt: attempts + 1,
    }));
  }
  return messages;
}

// --- One connection

class Link {
  constructor(url, onRequest) {
    this.url = url;
    this.closed = false;
    this.onRequest = onRequest;
    this.waiting = new Map();
    this.opaque = 0;
    this.socket = new WebSocket(url);
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = (event) => this.#receive(event.data);
    this.opened = new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.close(`${url} does not answer`), CONNECT_MS);
      this.socket.onopen = () => { clearTimeout(timer); resolve(this); };
      this.socket.onclose = (event) => {
        clearTimeout(timer);
        const why = event.reason || (event.code === 1006 ? "connection lost or refused" : `code ${event.code}`);
        this.#lost(`${url}: ${why}`);
        reject(new ConnectionLost(`${url}: ${why}`));
      };
    });
    this.opened.catch(() => {}); // whoever waits gets it; nobody may be waiting
  }

  async request(code, ext, body, timeout = REQUEST_MS) {
    await this.opened;
    if (this.closed) throw new ConnectionLost(`${this.url} is closed`);
    const opaque = this.opaque = (this.opaque + 1) & 0x7FFFFFFF;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiting.delete(opaque);
        reject(new ConnectionLost(`${this.url} did not answer within ${timeout} ms`));
      }, timeout);
      this.waiting.set(opaque, { resolve, reject, timer });
      this.socket.send(encodeFrame({ code, ext, opaque }, body));
    });
  }

  async oneway(code, ext, body) {
    await this.opened;
    if (!this.closed) this.socket.send(encodeFrame({ code, ext, flag: 2, opaque: ++this.opaque }, body));
  }

  close(reason = "closed") {
    this.#lost(reason);
    this.socket.close();
  }

  #receive(data) {
    let command;
    try {
      command = decodeFrame(data);
    } catch (error) {
      this.close(`bad frame: ${error.message}`);
      return;
    }
    if (command.flag & 1) {
      const waiter = this.waiting.get(command.opaque);
      if (!waiter) return;
      this.waiting.delete(command.opaque);
      clearTimeout(waiter.timer);
      waiter.resolve(command);
    } else {
      this.onRequest(command);
    }
  }

  #lost(reason) {
    if (this.closed) return;
    this.closed = true;
    for (const { reject, timer } of this.waiting.values()) {
      clearTimeout(timer);
      reject(new ConnectionLost(reason));
    }
    this.waiting.clear();
  }
}

// --- The client

/** `host:port` of a route → the URL of the gateway that belongs to it. */
export function gatewayOf(address) {
  const at = address.lastIndexOf(":");
  const host = address.slice(0, at);
  return `ws://${host.includes(":") && !host.startsWith("[") ? `[${host}]` : host}:${Number(address.slice(at + 1)) + GATEWAY_OFFSET}`;
}

/**
 * A client of one cluster.
 *
 * `nameServers`: URLs of the name servers' gateways, one or several. `gateway`: maps a broker's `host:port` to the URL
 * under which this page reaches it; by default the same host, port + 4. `timeout`: ms that a call may take.
 */
export async function connect(nameServers, { gateway = gatewayOf, timeout = 10_000 } = {}) {
  const client = new Client([nameServers].flat(), gateway, timeout);
  await client.ask(Code.ROUTE, { topic: TEMPLATE_TOPIC, acceptStandardJsonOnly: "true" });
  return client;
}

class Client {
  constructor(nameServers, gateway, timeout) {
    this.id = `browser@${randomHex(8)}`;
    this.timeout = timeout;
    this.closed = false;
    this.nameServers = nameServers;
    this.gateway = gateway;
    this.links = new Map();
    this.leaders = new Map(); // broker name → { addr, term }, from answers
    this.routes = new Map(); // topic → { at, groups }
    this.subscriptions = new Set();
    this.turn = Math.floor(Math.random() * 1024);
    this.count = 0;
    this.beat = setInterval(() => this.heartbeat(), REFRESH_MS);
  }

  /**
   * Store one message; resolves when it is acknowledged, on a majority of disks where the group is replicated by Raft.
   *
   * `body`: text, bytes, or anything JSON can write. Rejects with `TrimqError`: the broker's refusal, or that the
   * outcome is unknown when the time is over.
   */
  async send(topic, body, { tag, keys = [], orderKey, delayLevel, properties = {}, timeout = this.timeout } = {}) {
    const bytes = toBytes(body);
    if (bytes.length > BODY_MAX_BYTES) throw new TrimqError(`the body has ${bytes.length} bytes, more than 4 MiB`);
    const id = this.#nextId();
    const pairs = { UNIQ_KEY: id, WAIT: "true", ...properties };
    if (tag) pairs.TAGS = tag;
    if (keys.length) pairs.KEYS = [keys].flat().join(" ");
    if (orderKey) pairs.__SHARDINGKEY = orderKey;
    if (delayLevel) pairs.DELAY = String(delayLevel);
    for (const [name, value] of Object.entries(pairs)) {
      if (/[\x01\x02]/.test(name + value)) throw new TrimqError(`property ${name}: characters 1 and 2 separate properties`);
    }
    const until = Date.now() + timeout;
    const queue = await this.#queueFor(topic, orderKey, until);
    const ext = {
      a: "BROWSER_PRODUCER", b: topic, c: TEMPLATE_TOPIC, d: "4", e: String(queue.id), f: "0", g: String(Date.now()),
      h: "0", i: Object.entries(pairs).map(([k, v]) => k + NAME_END + v).join(PAIR_END), j: "0", k: "false", m: "false",
      n: queue.group.name,
    };
    // Repeated to this group only: its log knows the id, another group's does not.
    const answer = await this.call(queue.group.name, Code.SEND, ext, bytes, { until, done: STORED });
    return { id, topic, broker: queue.group.name, queue: Number(answer.ext.queueId), offset: Number(answer.ext.queueOffset) };
  }

  /**
   * Be handed the messages of a topic, each queue's one after the other; resolves when reading has begun.
   *
   * `mode` "cluster": the members of `group` share the messages, and its progress is kept by the brokers. "broadcast":
   * this page gets all of them. `tags`: an expression such as "paid || shipped". `start` "last" or "first": where
   * queues begin that the group has never read.
   */
  async subscribe(topic, { group, mode = "cluster", tags = "*", start = "last" }, handler) {
    const subscription = new Subscription(this, { topic, group, mode, tags, start, handler });
    this.subscriptions.add(subscription);
    try {
      await subscription.open();
    } catch (error) {
      this.subscriptions.delete(subscription);
      throw error;
    }
    return subscription;
  }

  /** Close all subscriptions and connections. */
  async close() {
    this.closed = true;
    clearInterval(this.beat);
    await Promise.allSettled([...this.subscriptions].map((each) => each.close()));
    for (const link of this.links.values()) link.close();
  }

  // Routes

  /** A name server's answer. */
  async ask(code, ext) {
    let last = new ConnectionLost("no name server");
    for (let tried = 0; tried < this.nameServers.length; tried++) {
      try {
        return await this.link(this.nameServers[0]).request(code, ext);
      } catch (error) {
        last = error;
        this.nameServers.push(this.nameServers.shift());
      }
    }
    throw last;
  }

  /** The groups that hold a topic; null when no broker has it. */
  async route(topic, { fresh = false } = {}) {
    const known = this.routes.get(topic);
    if (known && !fresh && Date.now() - known.at < REFRESH_MS) return known.groups;
    let answer;
    try {
      answer = await this.ask(Code.ROUTE, { topic, acceptStandardJsonOnly: "true" });
    } catch (error) {
      if (known) return known.groups; // an old route is better than none
      throw error;
    }
    if (answer.code === Answer.TOPIC_NOT_EXIST) return known?.groups ?? null;
    if (answer.code !== Answer.OK) throw new TrimqError(answer.remark, answer.code);
    const data = JSON.parse(text.decode(answer.body));
    const brokers = new Map(data.brokerDatas.map((broker) => [broker.brokerName, broker.brokerAddrs]));
    const groups = data.queueDatas
      .filter((queues) => brokers.has(queues.brokerName))
      .map((queues) => ({
        name: queues.brokerName, addresses: brokers.get(queues.brokerName), perm: queues.perm,
        reads: queues.readQueueNums, writes: queues.writeQueueNums,
      }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
    this.routes.set(topic, { at: Date.now(), groups });
    return groups;
  }

  async #queueFor(topic, orderKey, until) {
    let groups = await this.route(topic);
    if (!groups?.length) {
      groups = (await this.route(TEMPLATE_TOPIC))?.map((group) => ({ ...group, writes: Math.min(4, group.writes) }));
      this.#freshenSoon(topic);
    }
    if (!groups?.length) throw new TrimqError(`no broker has the topic ${topic}, and none creates topics by itself`);
    const queues = groups
      .filter((group) => group.perm & 2)
      .flatMap((group) => Array.from({ length: group.writes }, (_, id) => ({ group, id })));
    if (!queues.length) throw new TrimqError(`the topic ${topic} has no queue to write to`);
    if (orderKey) return queues[Math.abs(javaHash(orderKey)) % queues.length];
    queues.sort((a, b) => a.id - b.id || (a.group.name < b.group.name ? -1 : 1));
    return queues[this.turn++ % queues.length];
  }

  #freshenSoon(topic) {
    setTimeout(() => { if (!this.closed) this.route(topic, { fresh: true }).catch(() => {}); }, 300);
  }

  // Calls

  link(url) {
    let link = this.links.get(url);
    if (!link || link.closed) {
      link = new Link(url, (command) => this.#asked(command));
      this.links.set(url, link);
      link.opened.then(() => this.heartbeat(link), () => {});
    }
    return link;
  }

  /** Addresses of a group, best first. */
  #targets(name) {
    const addresses = {};
    for (const { groups } of this.routes.values()) {
      Object.assign(addresses, groups.find((group) => group.name === name)?.addresses);
    }
    const hint = this.leaders.get(name)?.addr;
    const sorted = Object.keys(addresses).sort((a, b) => a - b).map((id) => addresses[id]);
    return [...new Set([...(hint ? [hint] : []), ...sorted])];
  }

  /** Ask a group, wherever its leader is by now, until an answer is in `done` or a refusal, or the time is over. */
  async call(name, code, ext, body, { until = Date.now() + this.timeout, done = OK_ONLY, patience = REQUEST_MS } = {}) {
    let last = new ConnectionLost(`no broker of ${name} is known`);
    for (let pause = 20; ; pause = Math.min(pause * 2, 400)) {
      for (const address of this.#targets(name)) {
        const left = until - Date.now();
        if (left <= 0) throw last;
        try {
          const answer = await this.link(this.gateway(address)).request(code, ext, body, Math.min(left, patience));
          this.#noteLeader(name, answer.ext);
          if (done.has(answer.code)) return answer;
          last = new TrimqError(answer.remark || `answer ${answer.code}`, answer.code);
          if (FINAL.has(answer.code)) throw Object.assign(last, { final: true });
          break; // alive, but not now: wait before the next attempt
        } catch (error) {
          if (error.final) throw error;
          last = error;
          if (this.leaders.get(name)?.addr === address) this.leaders.delete(name);
        }
      }
      if (Date.now() + pause > until || this.closed) throw last;
      await sleep(pause * (0.5 + Math.random()));
      await this.#refreshRoutesOf(name);
    }
  }

  #noteLeader(name, ext) {
    const term = Number(ext.leaderTerm ?? 0);
    if (ext.leaderAddr && term >= (this.leaders.get(name)?.term ?? 0)) this.leaders.set(name, { addr: ext.leaderAddr, term });
  }

  async #refreshRoutesOf(name) {
    for (const [topic, { groups }] of this.routes) {
      if (groups.some((group) => group.name === name)) {
        await this.route(topic, { fresh: true }).catch(() => {});
        return;
      }
    }
  }

  #asked(command) {
    if (command.code !== Code.IDS_CHANGED) return;
    for (const each of this.subscriptions) if (each.group === command.ext.consumerGroup) each.rebalance();
  }

  // Membership

  /** Tell brokers which groups this page belongs to: all that are connected, or one. */
  heartbeat(one = null) {
    const consumers = [...this.subscriptions].map((each) => each.heartbeat());
    if (!consumers.length) return;
    const body = utf8.encode(JSON.stringify({ clientID: this.id, producerDataSet: [], consumerDataSet: consumers }));
    for (const link of one ? [one] : this.links.values()) {
      if (!link.closed && !this.nameServers.includes(link.url)) link.request(Code.HEARTBEAT, {}, body).catch(() => {});
    }
  }

  #nextId() {
    this.stem ??= randomHex(10);
    const now = new Date();
    const since = Date.now() - Date.UTC(now.getUTCFullYear(), now.getUTCMonth());
    this.count = (this.count + 1) & 0xFFFF;
    return this.stem + (since >>> 0).toString(16).toUpperCase().padStart(8, "0") + this.count.toString(16).toUpperCase().padStart(4, "0");
  }
}

// --- Consuming

class Subscription {
  constructor(client, { topic, group, mode, tags, start, handler }) {
    if (!group) throw new TrimqError("subscribe needs a consumer group: { group: \"...\" }");
    if (mode !== "cluster" && mode !== "broadcast") throw new TrimqError(`mode is "cluster" or "broadcast", not ${mode}`);
    Object.assign(this, { client, topic, group, mode, start, handler, closed: false });
    this.topics = mode === "cluster" ? { [topic]: tags, [`%RETRY%${group}`]: "*" } : { [topic]: tags };
    this.version = String(Date.now());
    this.readers = new Map(); // "topic broker queue" → Reader
    this.rebalancing = null;
  }

  async open() {
    await this.rebalance();
    if (!this.readers.size) this.#soon(500); // a topic that nobody has yet, or other members are still to let go
    this.timer = setInterval(() => this.rebalance(), REFRESH_MS);
    this.committer = setInterval(() => this.commit(), COMMIT_MS);
  }

  /** Stop reading, let the message in hand finish, keep what was handled, and leave the group. */
  async close() {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.timer);
    clearInterval(this.committer);
    this.client.subscriptions.delete(this);
    const readers = [...this.readers.values()];
    await Promise.allSettled(readers.map((reader) => reader.stop()));
    await this.commit(readers);
    const leave = { clientID: this.client.id, consumerGroup: this.group };
    await Promise.allSettled([...this.client.links.values()]
      .filter((link) => !link.closed && !this.client.nameServers.includes(link.url))
      .map((link) => link.request(Code.UNREGISTER, leave, undefined, 1_000)));
  }

  heartbeat() {
    return {
      groupName: this.group, consumeType: "CONSUME_PASSIVELY", consumeFromWhere: "CONSUME_FROM_LAST_OFFSET",
      messageModel: this.mode === "cluster" ? "CLUSTERING" : "BROADCASTING", unitMode: false,
      subscriptionDataSet: Object.entries(this.topics).map(([topic, subString]) => ({
        topic, subString, classFilterMode: false, expressionType: "TAG", subVersion: Number(this.version),
        tagsSet: [], codeSet: [],
      })),
    };
  }

  /** Find out which queues are this page's, and read exactly those. */
  rebalance() {
    if (this.rebalancing) return this.rebalancing;
    this.rebalancing = this.#rebalance()
      .catch((error) => { console.warn("trimq: queues are not shared out anew yet:", error.message); this.#soon(1_000); })
      .finally(() => { this.rebalancing = null; });
    return this.rebalancing;
  }

  #soon(ms) {
    setTimeout(() => { if (!this.closed) this.rebalance(); }, ms);
  }

  async #rebalance() {
    const queues = [];
    for (const topic of Object.keys(this.topics)) {
      const groups = (await this.client.route(topic, { fresh: true })) ?? [];
      if (topic === this.topic && !groups.length) this.#soon(1_000);
      for (const group of groups.filter((each) => each.perm & 4)) {
        for (let id = 0; id < group.reads; id++) queues.push({ topic, broker: group.name, id });
        // Brokers know their members by heartbeats, so every group's leader must be connected.
        if (this.mode === "cluster") await this.#join(group);
      }
    }
    // "Subscribe, then send" on a new topic misses nothing: what appears later is read from its first message.
    this.knownAtStart ??= new Set(queues.map(nameOf));
    if (this.closed) return;
    const mine = new Set((this.mode === "cluster" ? await this.#share(queues) : queues).map(nameOf));
    for (const [name, reader] of this.readers) {
      if (!mine.has(name)) {
        this.readers.delete(name);
        reader.stop().then(() => this.commit([reader]));
      }
    }
    for (const queue of queues) {
      const name = nameOf(queue);
      if (mine.has(name) && !this.readers.has(name) && !this.closed) {
        const reader = new Reader(this, queue, !this.knownAtStart.has(name));
        await reader.begin();
        this.readers.set(name, reader);
      }
    }
  }

  async #join(group) {
    for (const address of Object.values(group.addresses)) {
      try {
        const link = this.client.link(this.client.gateway(address));
        await link.opened;
        this.client.heartbeat(link);
      } catch { /* a replica that is down: the others know us */ }
    }
  }

  async #share(queues) {
    const shares = [];
    for (const topic of Object.keys(this.topics)) {
      const own = queues.filter((queue) => queue.topic === topic);
      if (!own.length) continue;
      const answer = await this.client.call(own[0].broker, Code.CONSUMER_LIST, { consumerGroup: this.group }, undefined, {
        done: new Set([Answer.OK, 1]),
      });
      const members = answer.code === Answer.OK ? JSON.parse(text.decode(answer.body)).consumerIdList.sort() : [];
      const index = members.indexOf(this.client.id);
      if (index < 0) { this.#soon(200); continue; } // the heartbeat is still on its way
      shares.push(...averagely(own, members.length, index));
    }
    return shares;
  }

  /** Tell the brokers how far this group is. */
  async commit(readers = [...this.readers.values()]) {
    if (this.mode !== "cluster") return;
    await Promise.allSettled(readers.filter((reader) => reader.handled > reader.committed).map(async (reader) => {
      const { topic, broker, id } = reader.queue;
      const offset = reader.handled;
      await this.client.call(broker, Code.UPDATE_OFFSET, {
        consumerGroup: this.group, topic, queueId: String(id), commitOffset: String(offset),
      }, undefined, { until: Date.now() + 3_000 });
      reader.committed = offset;
    }));
  }
}

class Reader {
  constructor(subscription, queue, young) {
    Object.assign(this, { subscription, queue, young, stopped: false, next: 0, handled: -1, committed: -1 });
    const tags = subscription.topics[queue.topic];
    this.wanted = tags === "*" ? null : new Set(tags.split("||").map((tag) => tag.trim()).filter(Boolean));
  }

  async begin() {
    const { client, group, mode, start } = this.subscription;
    const { topic, broker, id } = this.queue;
    const at = { topic, queueId: String(id) };
    let known = null;
    if (mode === "cluster") {
      const answer = await client.call(broker, Code.QUERY_OFFSET, { consumerGroup: group, ...at }, undefined, {
        done: new Set([Answer.OK, Answer.QUERY_NOT_FOUND]),
      });
      if (answer.code === Answer.OK) known = Number(answer.ext.offset);
    }
    if (known === null) {
      const last = start === "last" && !this.young && !topic.startsWith("%RETRY%");
      known = last ? Number((await client.call(broker, Code.MAX_OFFSET, at)).ext.offset) : 0;
    }
    this.next = this.handled = this.committed = known;
    this.running = this.#run();
  }

  async stop() {
    this.stopped = true;
    // A pull may be held for 15 s: nobody waits for it, only for the message in a handler's hands.
    await this.handling;
  }

  async #run() {
    while (!this.stopped) {
      try {
        const messages = await this.#pull();
        for (const message of messages) {
          if (this.stopped) return;
          this.handling = this.#handle(message);
          await this.handling;
          this.handled = message.offset + 1;
        }
        if (!this.stopped) this.handled = this.next;
      } catch (error) {
        if (this.stopped) return;
        await sleep(200 + 300 * Math.random());
      }
    }
  }

  async #pull() {
    const { client, group, topics, version } = this.subscription;
    const { topic, broker, id } = this.queue;
    const answer = await client.call(broker, Code.PULL, {
      consumerGroup: group, topic, queueId: String(id), queueOffset: String(this.next), maxMsgNums: String(PULL_COUNT),
      sysFlag: "6", commitOffset: "0", suspendTimeoutMillis: String(HOLD_MS), subscription: topics[topic],
      subVersion: version, expressionType: "TAG",
    }, undefined, {
      until: Date.now() + HOLD_MS + REQUEST_MS, patience: HOLD_MS + REQUEST_MS,
      done: new Set([Answer.OK, Answer.PULL_NOT_FOUND, Answer.PULL_RETRY_NOW, Answer.PULL_OFFSET_MOVED]),
    });
    const messages = answer.code === Answer.OK ? await decodeMessages(answer.body, broker) : [];
    this.next = Number(answer.ext.nextBeginOffset ?? this.next);
    return messages.filter((message) => !this.wanted || this.wanted.has(message.tag)); // equal hashes, other tags
  }

  async #handle(message) {
    const { client, group, mode, handler } = this.subscription;
    try {
      await handler(message);
    } catch (error) {
      console.warn(`trimq: the handler failed with ${message.topic} ${message.id}:`, error);
      if (mode !== "cluster") return; // nobody keeps a broadcast's failures
      await client.call(this.queue.broker, Code.SEND_BACK, {
        group, offset: String(message.position), delayLevel: "0", originMsgId: message.id, originTopic: message.topic,
        unitMode: "false", maxReconsumeTimes: "16",
      });
    }
  }
}

// --- Small things

const nameOf = (queue) => `${queue.topic} ${queue.broker} ${queue.id}`;

/** RocketMQ's AllocateMessageQueueAveragely: all members compute the same shares from the same sorted lists. */
export function averagely(queues, members, index) {
  const rest = queues.length % members;
  const size = queues.length <= members ? 1 : Math.floor(queues.length / members) + (rest > 0 && index < rest ? 1 : 0);
  const start = rest > 0 && index < rest ? index * size : index * size + rest;
  return queues.slice(start, Math.min(start + size, queues.length));
}

/** Java's String.hashCode: every client finds the same queue for a key. */
export function javaHash(string) {
  let hash = 0;
  for (let at = 0; at < string.length; at++) hash = (31 * hash + string.charCodeAt(at)) | 0;
  return hash === -0x80000000 ? 0 : hash;
}

function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, "0")).join("").toUpperCase();
}

function toBytes(body) {
  if (body instanceof Uint8Array) return body;
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  return utf8.encode(typeof body === "string" ? body : JSON.stringify(body));
}
