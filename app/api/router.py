"""A router whose operations have the names of their functions, for links between them."""

from functools import partial

from fastapi import APIRouter

Router = partial(APIRouter, generate_unique_id_function=lambda route: route.name)
