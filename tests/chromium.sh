#!/bin/sh
# Debian's Chromium for the tests that look at pages in a browser, where root can install it here; else these are
# skipped. Says in one line what it did, and never fails.

for name in chromium chromium-browser google-chrome; do
    if found=$(command -v "$name"); then
        echo "chromium: $found"
        exit 0
    fi
done

skipped="tests of pages in a browser are skipped"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "chromium: not here, and this user cannot install it with apt-get: $skipped"
    exit 0
fi

# A fresh container has no lists of packages: then the first try fails at once.
install="apt-get install -y --no-install-recommends chromium"
if DEBIAN_FRONTEND=noninteractive timeout 300 sh -c "$install || { apt-get update && $install; }" >/dev/null 2>&1 </dev/null; then
    echo "chromium: installed with apt-get"
else
    echo "chromium: apt-get could not install it within five minutes: $skipped"
fi
