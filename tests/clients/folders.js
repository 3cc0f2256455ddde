// Fills local folders as Crawlee 3 and the Apify SDK for JavaScript do.
//
// Without metadata files a key that ends like its content type loses that ending when it is read
// again (`page.html` becomes `page`), in Crawlee as well: `bare` is what Crawlee itself then finds.
//
// Arguments: the storage folder, a folder for what must be found. Writes there, for each store,
// STORE.json: for each record its key, content type, and its content in base64.

const assert = require('node:assert');
const { mkdirSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { MemoryStorage } = require('@crawlee/memory-storage');
const { Actor } = require('apify');

const [storage, folder] = process.argv.slice(2);

const RECORDS = [
    { key: 'INPUT', value: '{"a": 1}', contentType: 'application/json; charset=utf-8' },
    { key: 'note', value: 'größer\n'.repeat(500), contentType: 'text/plain; charset=utf-8' },
    { key: 'page.html', bare: 'page', value: '<p>text</p>', contentType: 'text/html; charset=utf-8' },
    { key: 'photo', value: Buffer.from([137, 80, 78, 71, 0, 255]), contentType: 'image/png' },
    { key: 'table.csv', bare: 'table', value: 'a,b\n1,2\n', contentType: 'text/csv; charset=utf-8' },
    { key: 'a/b', value: 'in a sub-folder', contentType: 'text/plain; charset=utf-8' },
];

function put(manifest, key, content, contentType) {
    manifest.push({ key, contentType, content: Buffer.from(content).toString('base64') });
}

async function memoryStorage(name, writeMetadata) {
    const client = new MemoryStorage({ localDataDirectory: storage, persistStorage: true, writeMetadata });
    const { id } = await client.keyValueStores().getOrCreate(name);
    const store = client.keyValueStore(id);
    const manifest = [];
    for (const { key, bare, value, contentType } of RECORDS) {
        await store.setRecord({ key, value, contentType });
        put(manifest, writeMetadata ? key : (bare ?? key), value, contentType);
    }
    await client.teardown();
    if (!writeMetadata) await crawleeFinds(name, manifest);
    writeFileSync(join(folder, `${name}.json`), JSON.stringify(manifest));
}

async function crawleeFinds(name, manifest) {
    const again = new MemoryStorage({ localDataDirectory: storage, persistStorage: true });
    for (const { key, contentType, content } of manifest) {
        // Crawlee does not look into the sub-folders that it makes.
        if (key.includes('/')) continue;
        const back = await again.keyValueStore(name).getRecord(key, { buffer: true });
        assert(back, `${name}: Crawlee does not find ${key}`);
        assert.strictEqual(Buffer.from(back.value).toString('base64'), content, key);
        assert.strictEqual(back.contentType, contentType, key);
    }
    await again.teardown();
}

async function sdk(name) {
    process.env.CRAWLEE_STORAGE_DIR = storage;
    await Actor.init();
    const store = await Actor.openKeyValueStore(name);
    const products = Array.from({ length: 300 }, (_, n) => ({ id: n, name: `Product ${n}` }));
    const manifest = [];
    await store.setValue('OUTPUT', products);
    put(manifest, 'OUTPUT', JSON.stringify(products, null, 2), 'application/json; charset=utf-8');
    await store.setValue('SCREENSHOT', Buffer.from('not really a picture'), { contentType: 'image/jpeg' });
    put(manifest, 'SCREENSHOT', 'not really a picture', 'image/jpeg');
    writeFileSync(join(folder, `${name}.json`), JSON.stringify(manifest));
    await Actor.exit({ exit: false });
}

async function main() {
    mkdirSync(folder, { recursive: true });
    await memoryStorage('js-plain', false);
    await memoryStorage('js-metadata', true);
    await sdk('js-sdk');
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
