"""Fills local folders as Crawlee for Python and the Apify SDK for Python do.

Arguments: the storage folder, a folder for what must be found. Writes there, for each store,
STORE.json: for each record its key, content type, and its content in base64.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from crawlee.configuration import Configuration
from crawlee.storage_clients import FileSystemStorageClient
from crawlee.storages import KeyValueStore

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
PRODUCTS = [{"id": n, "name": f"Product {n} – größer"} for n in range(300)]

# Key, value, content type if one is given, the content type that is stored.
RECORDS = [
    ("OUTPUT", PRODUCTS, None, JSON_TYPE),
    ("note", "größer\n" * 500, None, TEXT_TYPE),
    ("page.html", "<p>text</p>", "text/html; charset=utf-8", "text/html; charset=utf-8"),
    ("photo", b"\x89PNG\x00\xff", "image/png", "image/png"),
    ("a!'()-_.z", "every character of a valid key", None, TEXT_TYPE),
    ("a/b ü", "a key that the platform refuses", None, TEXT_TYPE),
]


async def fill(store: KeyValueStore, name: str, folder: Path) -> None:
    manifest = []
    for key, value, given, content_type in RECORDS:
        await store.set_value(key, value, content_type=given)
        back = await store.get_value(key)
        assert back == value, key
        if isinstance(value, list):
            # However it is laid out: the file is compared as JSON.
            manifest.append({"key": key, "contentType": content_type, "json": value})
            continue
        content = value.encode() if isinstance(value, str) else value
        manifest.append(
            {"key": key, "contentType": content_type, "content": base64.b64encode(content).decode()}
        )
    (folder / f"{name}.json").write_text(json.dumps(manifest))


async def crawlee(storage: Path, folder: Path) -> None:
    store = await KeyValueStore.open(
        name="python-crawlee",
        storage_client=FileSystemStorageClient(),
        configuration=Configuration(storage_dir=str(storage)),
    )
    await fill(store, "python-crawlee", folder)


async def sdk(storage: Path, folder: Path) -> None:
    from apify import Actor, Configuration as ActorConfiguration

    # An input that a person wrote, without anything beside it.
    default = storage / "key_value_stores/default"
    default.mkdir(parents=True, exist_ok=True)
    (default / "INPUT.json").write_text('{"query": "größer"}')
    async with Actor(configuration=ActorConfiguration(storage_dir=str(storage)), exit_process=False) as actor:
        assert await actor.get_input() == {"query": "größer"}
        await actor.set_value("OUTPUT", PRODUCTS)
        store = await actor.open_key_value_store(name="python-sdk")
        await fill(store, "python-sdk", folder)
    manifest = [
        {"key": "INPUT", "contentType": JSON_TYPE, "json": {"query": "größer"}},
        {"key": "OUTPUT", "contentType": JSON_TYPE, "json": PRODUCTS},
    ]
    (folder / "default.json").write_text(json.dumps(manifest))


async def main() -> None:
    storage, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    await crawlee(storage, folder)
    await sdk(storage, folder)


asyncio.run(main())
