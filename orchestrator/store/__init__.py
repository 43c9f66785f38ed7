"""The durable job store: tables, statements and the operations that change them."""
