# The object storages that tests run on this machine. Sourced by scripts/test.

python_packages storage tests/peers/storage/requirements.txt 'an S3 implementation for tests'
npm_packages azure tests/peers/azure/package.json "an implementation of Azure's blob storage for tests"
