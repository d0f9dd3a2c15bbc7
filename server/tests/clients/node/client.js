// Drives a server through the npm package etcd3: node client.js ENDPOINT. Exit status 0 if all of it held.
// By TLS, if CLIENT_CACERT, CLIENT_CERT and CLIENT_KEY name files; as a user, if CLIENT_USER and CLIENT_PASSWORD are there.
'use strict';

const assert = require('node:assert/strict');
const { readFileSync } = require('node:fs');
const { Etcd3, EtcdLockFailedError, EtcdLeaseInvalidError } = require('etcd3');

async function kv(client) {
  await client.put('node/a').value('1');
  assert.equal(await client.get('node/a').string(), '1');
  assert.equal(await client.get('node/none').string(), null);
  const previous = await client.put('node/a').value('2').getPrevious();
  assert.equal(previous.value.toString(), '1');
  await client.put('node/b').value(JSON.stringify({ deep: [1, 2] }));
  assert.deepEqual(await client.get('node/b').json(), { deep: [1, 2] });
  assert.deepEqual(await client.getAll().prefix('node/').keys(), ['node/a', 'node/b']);
  assert.deepEqual(await client.getAll().prefix('node/').sort('Key', 'Descend').limit(1).keys(), ['node/b']);
  assert.equal(await client.getAll().prefix('node/').count(), 2);
  await assert.rejects(() => client.put('').value('x').exec(), /key is not provided/);
  const deleted = await client.delete().prefix('node/');
  assert.equal(deleted.deleted, '2');
}

async function txn(client) {
  const create = () =>
    client
      .if('node/txn', 'Create', '==', 0)
      .then(client.put('node/txn').value('1'))
      .else(client.get('node/txn'))
      .commit();
  assert.equal((await create()).succeeded, true);
  const second = await create();
  assert.equal(second.succeeded, false);
  assert.equal(second.responses[0].response_range.kvs[0].value.toString(), '1');
  const result = await client.stm().transact(async (tx) => {
    const value = Number(await tx.get('node/txn').number());
    await tx.put('node/txn').value(value + 1);
    return value;
  });
  assert.equal(result, 1);
  assert.equal(await client.get('node/txn').string(), '2');
}

async function watch(client) {
  const watcher = await client.watch().prefix('node/watch/').create();
  const events = [];
  const three = new Promise((resolve) => {
    watcher.on('put', (kv, previous) => events.push(['put', kv.key.toString(), previous]));
    watcher.on('delete', (kv) => {
      events.push(['delete', kv.key.toString()]);
      resolve();
    });
  });
  await client.put('node/watch/a').value('1');
  await client.put('node/watch/b').value('1');
  await client.delete().key('node/watch/a');
  await three;
  assert.deepEqual(events.map((event) => event.slice(0, 2)), [
    ['put', 'node/watch/a'],
    ['put', 'node/watch/b'],
    ['delete', 'node/watch/a'],
  ]);
  await watcher.cancel();
}

async function lease(client) {
  const lease = client.lease(60);
  await lease.put('node/lease').value('1');
  const id = await lease.grant();
  const answer = await lease.keepaliveOnce();
  assert.equal(answer.TTL, '60');
  const told = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
  assert.deepEqual(told.keys.map(String), ['node/lease']);
  await lease.revoke();
  assert.equal(await client.get('node/lease').string(), null);
  await assert.rejects(() => client.put('node/lease').value('1').lease(id).exec(), /requested lease not found/);
  assert.ok(EtcdLeaseInvalidError);
}

async function lock(client) {
  const held = await client.lock('node').ttl(30).acquire();
  await assert.rejects(() => client.lock('node').acquire(), EtcdLockFailedError);
  await held.release();
  const result = await client.lock('node').do(() => 'inside');
  assert.equal(result, 'inside');
}

async function election(client) {
  const election = client.election('node');
  const campaign = election.campaign('first');
  await new Promise((resolve, reject) => {
    campaign.on('elected', resolve);
    campaign.on('error', reject);
  });
  const observer = await election.observe();
  assert.equal(await election.leader(), 'first');
  await observer.cancel();
  await campaign.resign();
  assert.equal(await election.leader(), undefined);
}

async function maintenance(client) {
  const status = await client.maintenance.status();
  assert.equal(status.leader, status.header.member_id);
  const members = await client.cluster.memberList({});
  assert.equal(members.members.length, 1);
  assert.deepEqual((await client.maintenance.alarm({ action: 'Get', memberID: 0, alarm: 'None' })).alarms, []);
  await client.maintenance.defragment();
  await client.kv.compact({ revision: status.header.revision, physical: true });
}

async function main() {
  const options = { hosts: process.argv[2] };
  if (process.env.CLIENT_CACERT) {
    const [rootCertificate, certChain, privateKey] = ['CACERT', 'CERT', 'KEY'].map((name) =>
      readFileSync(process.env[`CLIENT_${name}`]),
    );
    options.credentials = { rootCertificate, certChain, privateKey };
  }
  if (process.env.CLIENT_USER) {
    options.auth = { username: process.env.CLIENT_USER, password: process.env.CLIENT_PASSWORD };
  }
  const client = new Etcd3(options);
  for (const scenario of [kv, txn, watch, lease, lock, election, maintenance]) {
    await scenario(client);
    console.log('ok', scenario.name);
  }
  client.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
