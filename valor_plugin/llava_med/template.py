"""The conversation format of LLaVA-Med v1.5 (`mistral_instruct`), as a chat template.

Processors are called with `add_special_tokens=False` on templated text everywhere (by the host, by
TRL and by our evaluation), so the template itself opens with the one BOS.
"""

MISTRAL_INSTRUCT = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {% else %} {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<image>\n{% else %}{{ item['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} [/INST]{% else %} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)
