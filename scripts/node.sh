#!/bin/sh
# Brings Node.js, which the tests of clients/js run on, where it is missing and this is Debian's root. Elsewhere it only
# says so: everything but those tests works without.
set -u
if command -v node >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "no node here: install Node.js 18 or newer for the tests of the JavaScript client"
    exit 0
fi
limit=$(command -v timeout) && limit="$limit 300"
export DEBIAN_FRONTEND=noninteractive
if ! { $limit apt-get update -qq && $limit apt-get install -qq -y --no-install-recommends nodejs; } >/dev/null; then
    echo "Node.js could not be installed: the tests of the JavaScript client will fail and say so"
fi
