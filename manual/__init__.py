"""The manual: what writes its reference from the code, and what makes a site of docs/.

make reference      writes docs/reference/ and docs/llms.txt anew; a test holds them against the code
make site           builds build/site, strictly: a warning or a broken link ends it
"""
