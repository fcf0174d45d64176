#!/bin/sh
# Installs Azurite, which stands for Azure in the tests of az: logs, into build/azurite: whole or not at all.
# Where there is no npm, or it does not come within five minutes, those tests are skipped and say so.
set -u
version=3.37.0
place=build/azurite

if [ "$(cat "$place/version" 2>/dev/null)" = "$version" ]; then
    exit 0
fi
if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
    echo "no npm here: the tests against Azurite will be skipped"
    exit 0
fi
limit=$(command -v timeout) && limit="$limit 300"
rm -rf "$place" "$place.new"
mkdir -p "$place.new"
if $limit npm install --prefix "$place.new" --no-audit --no-fund --loglevel=error "azurite@$version"; then
    echo "$version" >"$place.new/version"
    mv "$place.new" "$place"
else
    rm -rf "$place.new"
    echo "Azurite could not be installed: the tests against it will be skipped"
fi
