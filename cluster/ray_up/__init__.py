"""One Ray cluster of rented machines: what `ray up cluster/<provider>.yaml` loads.

1. `cluster_file` checks a file before anything is rented; Ray calls it by `bootstrap_config`.
2. `node_provider` is what Ray's launcher and its monitor on the head call to rent and return.
3. `after_up` checks that what was started does live, because `ray up` itself ends with 0 anyway.
4. `head_watch` runs on the workers and ends them when their head is gone.
"""
