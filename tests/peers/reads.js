// Reads, as Crawlee 3 and the Apify SDK for JavaScript do, what the server wrote into a folder, and
// adds a record. Crawlee 3 takes files without an extension for text, whatever lies beside them
// (so it does with those of Crawlee for Python): texts are what it can read of this layout.
//
// Arguments: the storage folder, the store's name, a file with what must be found.

const assert = require('node:assert');
const { readFileSync } = require('node:fs');
const { MemoryStorage } = require('@crawlee/memory-storage');
const { Actor } = require('apify');

const [storage, name, manifest] = process.argv.slice(2);
const expected = JSON.parse(readFileSync(manifest, 'utf8'));

async function main() {
    const client = new MemoryStorage({ localDataDirectory: storage, persistStorage: true });
    const { id } = await client.keyValueStores().getOrCreate(name);
    const store = client.keyValueStore(id);
    const { items } = await store.listKeys();
    assert.deepStrictEqual(items.map(({ key }) => key).sort(), Object.keys(expected).sort());
    for (const [key, [, value]] of Object.entries(expected)) {
        assert.strictEqual((await store.getRecord(key)).value, value, key);
    }
    await client.teardown();
    await Actor.init({ storage: new MemoryStorage({ localDataDirectory: storage, persistStorage: true }) });
    const opened = await Actor.openKeyValueStore(name);
    for (const [key, [, value]] of Object.entries(expected)) {
        assert.strictEqual(await opened.getValue(key), value, key);
    }
    await opened.setValue('by-apify', { written: 'größer' });
    await Actor.exit({ exit: false });
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
