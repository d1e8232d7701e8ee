"""Who may do what: credentials, principals, grants, quotas. The edge asks (service/guard.py); this part knows.

`grants`, `principals`, `rules` and `quotas` are pure; `watched` reads files that may change, `tls`, `keys` and `tokens`
what is in them.
"""
