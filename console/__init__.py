"""The live console: a page on loopback that watches a local cloud, storms it and breaks it."""
