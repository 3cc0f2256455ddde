"""Walks through every key-value method of the official clients for Python, and then through those
of the SDK. Arguments: the API's address, a second account's token. The token is in APIFY_TOKEN;
the server knows the run `run0000000000000A` of `my-actor` and `my-task`."""

import asyncio
import io
import os
import sys
import urllib.error
import urllib.request
from datetime import timedelta

from apify_client import ApifyClient, ApifyClientAsync
from apify_client.errors import ApifyApiError

url, other_token = sys.argv[1:]
token = os.environ['APIFY_TOKEN']

SCHEMA = {
    'actorKeyValueStoreSchemaVersion': 1,
    'title': 'Records',
    'collections': {'images': {'title': 'Images', 'keyPrefix': 'image-'}},
}
LONG = 'größer\n' * 5000


def connect(token=None):
    return ApifyClient(token, api_url=url, api_public_url=url, max_retries=1)


class Waiting:
    """The asynchronous client, each call waited for, so that one walk serves both."""

    def __init__(self, inner, loop):
        self._inner, self._loop = inner, loop

    def __getattr__(self, name):
        member = getattr(self._inner, name)
        if not callable(member):
            return member

        def call(*args, **kwargs):
            result = member(*args, **kwargs)
            if asyncio.iscoroutine(result):
                return self._loop.run_until_complete(result)
            if hasattr(result, '__aiter__'):
                return self._loop.run_until_complete(drain(result))
            if type(result).__module__.startswith('apify_client'):
                return Waiting(result, self._loop)
            return result

        return call


async def drain(iterator):
    return [item async for item in iterator]


def fetch(address):
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b''


def fails(call, status, kind):
    try:
        call()
    except ApifyApiError as error:
        assert (error.status_code, error.type) == (status, kind), (error.status_code, error.type)
    else:
        raise AssertionError(f'no {kind}')


def walk(client, name):
    stores = client.key_value_stores()
    made = stores.get_or_create(name=name, schema=SCHEMA)
    assert stores.get_or_create(name=name.upper()).id == made.id
    unnamed = stores.get_or_create()
    assert made.id in [store.id for store in stores.list(limit=100, offset=0, desc=True).items]
    assert unnamed.id in [store.id for store in stores.iterate(unnamed=True)]
    assert stores.list(ownership='sharedWithMe').total == 0
    client.key_value_store(unnamed.id).delete()
    assert client.key_value_store(unnamed.id).get() is None
    client.key_value_store(unnamed.id).delete()

    store = client.key_value_store(made.id)
    for reference in (made.id, f'local~{name}', f'local/{name}', f'LOCAL~{name.upper()}'):
        assert client.key_value_store(reference).get().id == made.id, reference
    changed = store.update(name=f'{name}-2', title='Walked', general_access='RESTRICTED')
    assert (changed.name, changed.title) == (f'{name}-2', 'Walked')
    # The platform leaves the secret out of this answer.
    assert not changed.url_signing_secret_key and changed.stats

    values = {
        'INPUT': ({'a': [1, None]}, None, 'application/json; charset=utf-8'),
        'image-1': (bytes([137, 0, 255]), 'image/png', 'image/png'),
        'image-2': (LONG, 'text/html', 'text/html'),
        "my!key'(v1).json": ([1], None, 'application/json; charset=utf-8'),
        'long': (LONG, None, 'text/plain; charset=utf-8'),
        'null': (None, None, 'application/json; charset=utf-8'),
        'k' * 256: ('x', None, 'text/plain; charset=utf-8'),
    }
    for key, (value, given, content_type) in values.items():
        store.set_record(key, value, content_type=given)
        assert store.record_exists(key), key
        got = store.get_record(key)
        assert got['content_type'] == content_type, got['content_type']
        assert got['value'] == value, key
        raw = store.get_record_as_bytes(key)['value']
        status, body = fetch(store.get_record_public_url(key))
        assert status == 200, key
        assert body.endswith(raw), key
    store.set_record('file', io.BytesIO(LONG.encode()), content_type='text/csv')
    assert store.get_record_as_bytes('file')['value'] == LONG.encode()
    store.set_record('empty', b'', content_type='application/x-nothing')
    assert store.get_record_as_bytes('empty')['value'] == b''
    assert not store.record_exists('none')
    assert store.get_record('none') is None

    keys = sorted([*values, 'file', 'empty'])
    page = store.list_keys(limit=3)
    assert ([item.key for item in page.items], page.is_truncated) == (keys[:3], True)
    rest = store.list_keys(exclusive_start_key=page.next_exclusive_start_key)
    assert ([item.key for item in rest.items], rest.next_exclusive_start_key) == (keys[3:], None)
    assert [item.key for item in store.iterate_keys()] == keys
    assert [item.key for item in store.list_keys(collection='images').items] == ['image-1', 'image-2']
    assert [item.key for item in store.list_keys(prefix='image-2').items] == ['image-2']
    fails(lambda: store.list_keys(collection='none'), 400, 'invalid-collection')
    for options in ({}, {'expires_in': timedelta(minutes=1), 'limit': 2, 'prefix': 'image-'}):
        assert fetch(store.create_keys_public_url(**options))[0] == 200

    nameless, others = (401, 'token-not-provided'), (403, 'insufficient-permissions')
    for stranger, denied in ((connect(), nameless), (connect(other_token), others)):
        theirs = stranger.key_value_store(made.id)
        fails(theirs.list_keys, *denied)
        fails(lambda: theirs.get_record('INPUT'), *denied)
    fails(connect('wrong').key_value_store(made.id).get, 401, 'user-or-token-not-found')

    run = client.run('run0000000000000A').key_value_store()
    run.set_record('by-run', 'x')
    last = client.actor('local/my-actor').last_run(status='SUCCEEDED').key_value_store()
    assert last.get_record('by-run')['value'] == 'x'
    client.task('local/my-task').last_run().key_value_store().delete_record('by-run')
    assert run.get_record('by-run') is None

    for _ in range(2):
        store.delete_record('INPUT')
    assert store.get_record('INPUT') is None
    store.delete()
    assert store.get() is None


def streamed(client):
    """Streams are context managers, other ones in each client."""
    store = client.key_value_store(client.key_value_stores().get_or_create(name='streamed').id)
    store.set_record('k', (part for part in (b'one', b'two')), content_type='text/plain')
    with store.stream_record('k') as record:
        assert record['value'].read() == b'onetwo'
    store.delete()


async def sdk(store_id):
    from apify import Actor, Configuration

    configuration = Configuration(
        token=token,
        api_base_url=url,
        api_public_base_url=url,
        is_at_home=True,
        actor_run_id='run0000000000000A',
        default_key_value_store_id=store_id,
    )
    Actor = Actor(configuration=configuration, configure_logging=False, exit_process=False)
    async with Actor:
        store = await Actor.open_key_value_store(id=store_id, force_cloud=True)
        for value in ({'a': 1}, 'text', [1, 2]):
            await store.set_value('OUTPUT', value)
            assert await store.get_value('OUTPUT') == value
            await Actor.set_value('OUTPUT2', value)
            assert await Actor.get_value('OUTPUT2') == value
        assert await Actor.get_value('none') is None
        assert [item.key async for item in store.iterate_keys()] == ['OUTPUT', 'OUTPUT2']
        assert fetch(await store.get_public_url('OUTPUT'))[0] == 200
        await store.delete_value('OUTPUT')
        assert not await store.record_exists('OUTPUT')


def main():
    client = connect(token)
    walk(client, 'walk-py')
    streamed(client)
    loop = asyncio.new_event_loop()
    waiting = ApifyClientAsync(token, api_url=url, api_public_url=url, max_retries=1)
    walk(Waiting(waiting, loop), 'walk-async')
    asyncio.run(sdk(client.key_value_stores().get_or_create(name='sdk-py').id))


main()
