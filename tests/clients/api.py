"""Fills a store through the official client for Python, as its users do.

Arguments: the API's address, the store's id, a file for what must be found: for each record its
key, content type, encoding, and its content in base64. The token is in APIFY_TOKEN.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

from apify_client import ApifyClient

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
SENTENCE = "Příliš žluťoučký kůň úpěl ďábelské ódy. 马 🐎\n"

# Records from 1,024 bytes on are compressed, but for streams and what is compressed already.
# Key, value, content type if one is given, encoding, the content type that is stored.
RECORDS = [
    ("INPUT", {"startUrls": [{"url": "https://example.com/?a=1&b=2"}]}, None, None, JSON_TYPE),
    ("OUTPUT", [{"id": n, "name": f"Product {n} – größer"} for n in range(400)], None, "gzip", JSON_TYPE),
    ("short.txt", "no line break", None, None, TEXT_TYPE),
    ("long.txt", SENTENCE * 2000, None, "gzip", TEXT_TYPE),
    ("page.html", "<html>" + "<p>text</p>" * 300 + "</html>", "text/html; charset=utf-8", "gzip", "text/html; charset=utf-8"),
    ("1023", "x" * 1023, None, None, TEXT_TYPE),
    ("1024", "x" * 1024, None, "gzip", TEXT_TYPE),
    ("noise.png", os.urandom(300_000), "image/png", None, "image/png"),
    ("noise.bin", os.urandom(300_000), None, "gzip", "application/octet-stream"),
    ("small.bin", b"\x00\xff\n\r\x00", None, None, "application/octet-stream"),
    ("empty", b"", "application/x-nothing", None, "application/x-nothing"),
    ("my!key'(v1).json", '{"odd": "key"}', "application/json", None, "application/json"),
    ("k" * 256, "the longest key", None, None, TEXT_TYPE),
    ("stream.csv", io.BytesIO(b"id,name\n" * 50_000), "text/csv", None, "text/csv"),
]


def main() -> None:
    url, store_id, file = sys.argv[1:]
    client = ApifyClient(os.environ["APIFY_TOKEN"], api_url=url, max_retries=0)
    store = client.key_value_store(store_id)
    manifest = []
    for key, value, given, encoding, content_type in RECORDS:
        plain = value.getvalue() if isinstance(value, io.BytesIO) else value
        store.set_record(key, value, content_type=given)
        back = store.get_record_as_bytes(key)["value"]
        if isinstance(plain, (dict, list)):
            assert json.loads(back) == plain, key
        else:
            assert back == (plain.encode() if isinstance(plain, str) else plain), key
        content = base64.b64encode(back).decode()
        manifest.append(
            {"key": key, "contentType": content_type, "encoding": encoding, "content": content}
        )
    Path(file).write_text(json.dumps(manifest))


main()
