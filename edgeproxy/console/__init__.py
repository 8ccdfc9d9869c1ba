"""The control plane's JSON API: how a key's holder sees what the verbs in `control` tell. No SQL, no Redis."""
