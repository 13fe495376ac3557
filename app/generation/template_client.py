"""Asks the process that renders chat templates."""

import logging
from typing import Any

from transformers import PreTrainedTokenizerBase

from app.engine.sampling.text import MessagesRefused, check_template
from app.generation import template_server
from app.generation.limited_process import LimitedProcess, ProcessEnded
from app.generation.request import Chat

logger = logging.getLogger(__name__)


class TemplateClient(LimitedProcess):
    def __init__(self) -> None:
        super().__init__(template_server)

    async def render(self, tokenizer: PreTrainedTokenizerBase, chat: Chat) -> str:
        """As ``render_chat``. Raises ``ProcessEnded`` if the process ends twice."""
        check_template(tokenizer)
        messages = [
            {key: value for key, value in message.items() if value is not None}
            for message in chat.messages
        ]
        tools = [dict(tool) for tool in chat.tools] or None
        try:
            template = tokenizer.get_chat_template(tools=tools)
        except ValueError as error:  # it has several, and none for this
            raise MessagesRefused(str(error)) from error
        request = {
            "chat_template": template,
            "special_tokens": tokenizer.special_tokens_map,
            "messages": messages,
            "tools": tools,
            "arguments": chat.template_arguments,
        }
        answer = await self._asked(request)
        if "refused" in answer:
            raise MessagesRefused(f"the chat template cannot render them: {answer['refused']}")
        return str(answer["text"])

    async def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self.ask(request)
        except ProcessEnded:
            logger.warning("the process that renders chat templates has ended: starting another")
            return await self.ask(request)
