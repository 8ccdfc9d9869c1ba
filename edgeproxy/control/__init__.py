"""The control plane's verbs: what an owner or a key's holder can do. No HTML, no command line, no SQL of its own."""
