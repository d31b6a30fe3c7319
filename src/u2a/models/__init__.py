"""The policy: where a model comes from, how it is loaded, adapted, sharded, merged and saved."""
