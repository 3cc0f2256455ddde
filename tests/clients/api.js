// Fills a store through the official client for JavaScript, as its users do.
//
// Arguments: the API's address, the store's id, a file for what must be found: for each record
// its key, content type, encoding, and its content in base64. The token is in APIFY_TOKEN.

const assert = require('node:assert');
const { randomBytes } = require('node:crypto');
const { writeFileSync } = require('node:fs');
const { Readable } = require('node:stream');
const { ApifyClient } = require('apify-client');

const [baseUrl, storeId, file] = process.argv.slice(2);

const products = Array.from({ length: 400 }, (_, n) => ({ id: n, name: `Product ${n} – größer`, tags: ['a', null, true] }));
const sentence = 'Příliš žluťoučký kůň úpěl ďábelské ódy. 马 🐎\n';
const JSON_TYPE = 'application/json; charset=utf-8';
const TEXT_TYPE = 'text/plain; charset=utf-8';

// Records from 1,024 bytes on are compressed, streams never.
const records = [
    { key: 'INPUT', value: { startUrls: [{ url: 'https://example.com/?a=1&b=2' }] }, contentType: JSON_TYPE },
    { key: 'OUTPUT', value: products, contentType: JSON_TYPE, encoding: 'br' },
    { key: 'null', value: null, contentType: JSON_TYPE, content: Buffer.from('null') },
    { key: 'short.txt', value: 'no line break', contentType: TEXT_TYPE },
    { key: 'long.txt', value: sentence.repeat(2000), contentType: TEXT_TYPE, encoding: 'br' },
    { key: 'page.html', value: `<html><body>${'<p>text</p>'.repeat(300)}</body></html>`, contentType: 'text/html; charset=utf-8', given: true, encoding: 'br' },
    { key: '1023', value: 'x'.repeat(1023), contentType: TEXT_TYPE },
    { key: '1024', value: 'x'.repeat(1024), contentType: TEXT_TYPE, encoding: 'br' },
    { key: 'noise.png', value: randomBytes(300_000), contentType: 'image/png', given: true, encoding: 'br' },
    { key: 'small.bin', value: Buffer.from([0, 255, 10, 13, 0]), contentType: 'application/octet-stream' },
    { key: 'empty', value: Buffer.alloc(0), contentType: 'application/x-nothing', given: true },
    { key: "my!key'(v1).json", value: '{"odd": "key"}', contentType: 'application/json', given: true },
    { key: 'k'.repeat(256), value: 'the longest key', contentType: TEXT_TYPE },
    { key: 'stream.csv', stream: 'id,name\n'.repeat(50_000), contentType: 'text/csv', given: true },
];

function expected({ value, stream, content }) {
    if (content) return content;
    if (stream !== undefined) return Buffer.from(stream);
    if (Buffer.isBuffer(value)) return value;
    return Buffer.from(typeof value === 'string' ? value : JSON.stringify(value, null, 2));
}

async function main() {
    const client = new ApifyClient({ baseUrl, token: process.env.APIFY_TOKEN, maxRetries: 0 });
    const store = client.keyValueStore(storeId);
    const manifest = [];
    for (const record of records) {
        const { key, stream, contentType, given, encoding } = record;
        const value = stream === undefined ? record.value : Readable.from([stream.slice(0, 1000), stream.slice(1000)], { objectMode: false });
        await store.setRecord({ key, value, ...(given && { contentType }) });
        const content = expected(record);
        const back = await store.getRecord(key, { buffer: true });
        assert(back && content.equals(back.value), `${key}: the client reads something else than it wrote`);
        manifest.push({ key, contentType, encoding, content: content.toString('base64') });
    }
    writeFileSync(file, JSON.stringify(manifest));
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
