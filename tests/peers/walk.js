// Walks through every key-value method of the official client for JavaScript, and then through
// those of the SDK. Arguments: the API's address, a second account's token. The token is in
// APIFY_TOKEN; the server knows the run `run0000000000000A` of `my-actor` and `my-task`.

const assert = require('node:assert');
const { Readable } = require('node:stream');
const { text } = require('node:stream/consumers');
const { ApifyClient } = require('apify-client');
const { Actor } = require('apify');

const [baseUrl, otherToken] = process.argv.slice(2);
const token = process.env.APIFY_TOKEN;
const connect = (options) => new ApifyClient({ baseUrl, publicBaseUrl: baseUrl, maxRetries: 1, ...options });
const client = connect({ token });

const schema = {
    actorKeyValueStoreSchemaVersion: 1,
    title: 'Records',
    collections: { images: { title: 'Images', keyPrefix: 'image-' }, input: { title: 'Input', key: 'INPUT' } },
};

async function collection() {
    const stores = client.keyValueStores();
    const made = await stores.getOrCreate('walk-js', { schema });
    assert.strictEqual((await stores.getOrCreate('WALK-JS')).id, made.id);
    assert.deepStrictEqual(made.schema, schema);
    const unnamed = await stores.getOrCreate();
    const named = await stores.list({ limit: 10, offset: 0, desc: true });
    assert.ok(named.items.some(({ id }) => id === made.id) && !named.items.some(({ id }) => id === unnamed.id));
    const all = [];
    for await (const store of stores.list({ unnamed: true, limit: 100 })) all.push(store.id);
    assert.ok(all.includes(unnamed.id) && all.includes(made.id));
    assert.strictEqual((await stores.list({ ownership: 'sharedWithMe' })).total, 0);
    await client.keyValueStore(unnamed.id).delete();
    assert.strictEqual(await client.keyValueStore(unnamed.id).get(), undefined);
    await client.keyValueStore(unnamed.id).delete();
    return made;
}

async function object({ id }) {
    for (const name of [id, id.toLowerCase(), 'local~walk-js', 'local/walk-js', 'LOCAL~Walk-JS', '~walk-js']) {
        assert.strictEqual((await client.keyValueStore(name).get()).id, id, name);
    }
    const changed = await client.keyValueStore(id).update({ name: 'walked-js', title: 'Walked', generalAccess: 'RESTRICTED' });
    assert.deepStrictEqual([changed.name, changed.title, changed.generalAccess], ['walked-js', 'Walked', 'RESTRICTED']);
    // The platform leaves the secret out of this answer.
    assert.ok(!changed.urlSigningSecretKey && changed.createdAt instanceof Date && changed.stats);
    const other = await client.keyValueStores().getOrCreate('taken-js');
    await assert.rejects(client.keyValueStore(other.id).update({ name: 'walked-js' }), { type: 'name-not-unique' });
    await client.keyValueStore(other.id).delete();
    assert.strictEqual((await client.user('me').get()).username, 'local');
}

async function records(store) {
    const long = 'größer\n'.repeat(5000);
    const values = [
        ['INPUT', { value: { a: [1, null] } }, { a: [1, null] }, 'application/json; charset=utf-8'],
        ['image-1', { value: Buffer.from([137, 0, 255]), contentType: 'image/png' }, Buffer.from([137, 0, 255]), 'image/png'],
        ['image-2', { value: long, contentType: 'text/html' }, long, 'text/html'],
        ["my!key'(v1).json", { value: '[1]', contentType: 'application/json' }, [1], 'application/json'],
        ['empty', { value: Buffer.alloc(0), contentType: 'application/x-nothing' }, undefined, 'application/x-nothing'],
        ['null', { value: null }, null, 'application/json; charset=utf-8'],
        ['stream', { value: Readable.from([long, long]), contentType: 'text/csv' }, long + long, 'text/csv'],
        ['long', { value: long }, long, 'text/plain; charset=utf-8'],
        ['k'.repeat(256), { value: 'x' }, 'x', 'text/plain; charset=utf-8'],
    ];
    for (const [key, record, value, contentType] of values) {
        await store.setRecord({ key, ...record });
        assert.strictEqual(await store.recordExists(key), true);
        const got = await store.getRecord(key);
        assert.strictEqual(got.contentType, contentType, key);
        assert.deepStrictEqual(got.value, value, key);
        const raw = await store.getRecord(key, { buffer: true });
        assert.ok(Buffer.isBuffer(raw.value), key);
        const streamed = await store.getRecord(key, { stream: true });
        assert.strictEqual(await text(streamed.value), raw.value.toString(), key);
        const open = await fetch(await store.getRecordPublicUrl(key));
        assert.strictEqual(open.status, 200, key);
        if (contentType !== 'text/html') assert.deepStrictEqual(Buffer.from(await open.arrayBuffer()), raw.value, key);
    }
    assert.strictEqual(await store.recordExists('none'), false);
    assert.strictEqual(await store.getRecord('none'), undefined);
    await assert.rejects(store.setRecord({ key: 'a/b', value: 'x' }));
    return values.map(([key]) => key).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
}

async function keys(store, all) {
    const names = (page) => page.items.map(({ key }) => key);
    const page = await store.listKeys({ limit: 4 });
    assert.deepStrictEqual([names(page), page.isTruncated, page.nextExclusiveStartKey], [all.slice(0, 4), true, all[3]]);
    const rest = await store.listKeys({ exclusiveStartKey: page.nextExclusiveStartKey });
    assert.deepStrictEqual([names(rest), rest.isTruncated, rest.nextExclusiveStartKey], [all.slice(4), false, null]);
    const walked = [];
    for await (const { key } of store.listKeys()) walked.push(key);
    assert.deepStrictEqual(walked, all);
    assert.deepStrictEqual(names(await store.listKeys({ prefix: 'image-' })), ['image-1', 'image-2']);
    assert.deepStrictEqual(names(await store.listKeys({ collection: 'images' })), ['image-1', 'image-2']);
    assert.deepStrictEqual(names(await store.listKeys({ collection: 'input' })), ['INPUT']);
    await assert.rejects(store.listKeys({ collection: 'none' }), { type: 'invalid-collection' });
    for (const options of [{}, { expiresInSecs: 60 }, { expiresInSecs: 60, limit: 2, prefix: 'image-' }]) {
        const answer = await fetch(await store.createKeysPublicUrl(options));
        const { data } = await answer.json();
        assert.strictEqual(data.items.length, options.limit ?? all.length);
        const signed = await fetch(data.items[0].recordPublicUrl);
        assert.strictEqual(signed.status, 200);
    }
    const archive = await fetch(`${baseUrl}/v2/key-value-stores/${store.id}/records`, { headers: { authorization: `Bearer ${token}` } });
    assert.strictEqual(archive.headers.get('content-type'), 'application/zip');
}

async function strangers(store) {
    const nameless = { statusCode: 401, type: 'token-not-provided' };
    const others = { statusCode: 403, type: 'insufficient-permissions' };
    for (const [stranger, denied] of [[connect({}), nameless], [connect({ token: otherToken }), others]]) {
        await assert.rejects(stranger.keyValueStore(store.id).listKeys(), denied);
        await assert.rejects(stranger.keyValueStore(store.id).getRecord('INPUT'), denied);
    }
    await assert.rejects(connect({ token: 'wrong' }).keyValueStore(store.id).get(), { type: 'user-or-token-not-found' });
    await assert.rejects(connect({}).keyValueStores().list(), { type: 'token-not-provided' });
    await store.update({ generalAccess: 'ANYONE_WITH_ID_CAN_READ' });
    assert.deepStrictEqual((await connect({}).keyValueStore(store.id).getRecord('INPUT')).value, { a: [1, null] });
    assert.strictEqual((await connect({}).keyValueStore(store.id).get()).urlSigningSecretKey, undefined);
}

async function aliases() {
    const { id } = await client.keyValueStore('~test-store').get();
    for (const run of [
        client.run('run0000000000000A'),
        client.actor('local/my-actor').lastRun({ status: 'SUCCEEDED' }),
        client.task('local/my-task').lastRun(),
    ]) {
        assert.strictEqual((await run.keyValueStore().get()).id, id);
        await run.keyValueStore().setRecord({ key: 'by-run', value: 'x' });
        assert.strictEqual((await run.keyValueStore().getRecord('by-run')).value, 'x');
        assert.deepStrictEqual((await run.keyValueStore().listKeys()).items.map(({ key }) => key), ['by-run']);
        await run.keyValueStore().deleteRecord('by-run');
    }
}

async function sdk() {
    process.env.APIFY_API_BASE_URL = baseUrl;
    process.env.APIFY_API_PUBLIC_BASE_URL = baseUrl;
    process.env.APIFY_IS_AT_HOME = '1';
    process.env.ACTOR_RUN_ID = 'run0000000000000A';
    process.env.ACTOR_DEFAULT_KEY_VALUE_STORE_ID = (await client.keyValueStores().getOrCreate('sdk-js')).id;
    await Actor.init();
    for (const value of [{ a: 1 }, 'text', [1, 2]]) {
        await Actor.setValue('OUTPUT', value);
        assert.deepStrictEqual(await Actor.getValue('OUTPUT'), value);
    }
    await Actor.setValue('image', Buffer.from([1, 2, 3]), { contentType: 'image/png' });
    assert.deepStrictEqual(await Actor.getValue('image'), Buffer.from([1, 2, 3]));
    assert.strictEqual(await Actor.getValue('none'), null);
    const store = await Actor.openKeyValueStore('sdk-named-js', { forceCloud: true });
    await store.setValue('k', 'v');
    const seen = [];
    await store.forEachKey((key) => seen.push(key));
    assert.deepStrictEqual(seen, ['k']);
    const open = await fetch(await store.getPublicUrl('k'));
    assert.strictEqual(await open.json(), 'v');
    await store.setValue('k', null);
    assert.strictEqual(await store.recordExists('k'), false);
    await store.drop();
}

async function main() {
    const made = await collection();
    await object(made);
    const store = client.keyValueStore(made.id);
    const all = await records(store);
    await keys(store, all);
    await strangers(store);
    await store.deleteRecord('INPUT');
    await store.deleteRecord('INPUT');
    assert.strictEqual(await store.getRecord('INPUT'), undefined);
    await aliases();
    await sdk();
    await store.delete();
    assert.strictEqual(await store.get(), undefined);
}

main().then(() => process.exit(0), (error) => {
    console.error(error);
    process.exit(1);
});
