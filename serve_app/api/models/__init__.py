"""The answers of the routes as pydantic models, for the document of the API and its clients.

The functions of `answers.py` and the routers write the answers; these models describe them. Tests
validate real answers against the document that is made of them.
"""
