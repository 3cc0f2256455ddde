"""Reads, as Crawlee for Python and the Apify SDK for Python do, what the server wrote into a folder.

Arguments: the storage folder, the store's name, a file with what must be found: for each key a
content type and the value, binary ones in base64.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from apify import Actor, Configuration as ActorConfiguration
from crawlee.configuration import Configuration
from crawlee.storage_clients import FileSystemStorageClient
from crawlee.storages import KeyValueStore


async def check(store, expected, mine) -> None:
    keys = [item.key async for item in store.iterate_keys()]
    assert sorted(keys) == sorted(expected), keys
    for key, (kind, value) in expected.items():
        found = await store.get_value(key)
        wanted = value if kind in ("json", "text") else base64.b64decode(value)
        assert found == wanted, (key, found)
    # What is written beside it is there for the server.
    await store.set_value(mine, {"written": "größer"})


async def main() -> None:
    storage, name, manifest = sys.argv[1:]
    expected = json.loads(Path(manifest).read_text())
    store = await KeyValueStore.open(
        name=name,
        storage_client=FileSystemStorageClient(),
        configuration=Configuration(storage_dir=storage, purge_on_start=False),
    )
    await check(store, expected, "by-crawlee")
    await store.delete_value("by-crawlee")
    configuration = ActorConfiguration(storage_dir=storage, purge_on_start=False)
    async with Actor(configuration=configuration, exit_process=False) as actor:
        store = await actor.open_key_value_store(name=name)
        await check(store, expected, "by-apify")


asyncio.run(main())
