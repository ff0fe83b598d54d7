"""Small chat templates of every known kind, on a byte-level tokenizer."""

from persona_collapse.models import chat_template, loading

_TURN = "'<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n'"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_GEMMA_TURNS = (
    "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + (m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_THOUGHT = "{{ '<think>\n\n</think>\n\n' if loop.last else '' }}"

TEMPLATES = {
    # For models that have none.
    "plain": chat_template.PLAIN,
    # ChatML, with a start token and without a system message of its own.
    "chatml_bos": "{{ bos_token }}{% for m in messages %}{{ " + _TURN + " }}{% endfor %}" + _ASK,
    # No system role: one template refuses it, one silently drops it.
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% set turns = messages %}" + _GEMMA_TURNS,
    "silent": "{{ bos_token }}{% set turns = messages | rejectattr('role', 'equalto', 'system') %}"
    + _GEMMA_TURNS,
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content"
    " + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
    # The template itself puts the system message into the first user turn.
    "gemma3": "{{ bos_token }}{% set s = messages[0].content + '\n\n' if messages[0].role == 'system' "
    "else '' %}"
    "{% set turns = messages[1:] if s else messages %}{% for m in turns %}{{ '<start_of_turn>' + "
    "('model' if m.role == 'assistant' else m.role) + '\n' + (s if loop.first else '') + "
    "(m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    # Always writes a system block, with the date in it.
    "llama": "{{ bos_token }}{{ '<|head|>system<|/head|>\n\nCutting Knowledge Date: May\nToday Date: ' + "
    "strftime_now('%d %b %Y') + '\n\n' }}{% set s = messages[0].role == 'system' %}"
    "{{ messages[0].content | trim if s }}{{ '<|eot|>' }}{% for m in (messages[1:] if s else messages) %}"
    "{{ '<|head|>' + m.role + '<|/head|>\n\n' + (m.content | trim) + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}",
    # Writes a system message if none is given, and its marks are not special tokens.
    "own": "{% set s = messages[0].role == 'system' %}{{ '[S]' + (messages[0].content if s else "
    "'You are Default, made by Somebody.') + '[/S]\n' }}{% for m in (messages[1:] if s else messages) %}"
    "{{ '[' + m.role + ']' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}",
    # The whole conversation ends with an extra token.
    "phi": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}",
    # Keeps thinking only in the last answer; the same with marked answers.
    "think": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    + _THOUGHT
    + "{{ m.content + '<|im_end|>\n' }}{% else %}{{ "
    + _TURN
    + " }}{% endif %}{% endfor %}"
    + _ASK,
    "think_marked": "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}"
    + _THOUGHT
    + "{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ "
    + _TURN
    + " }}{% endif %}{% endfor %}"
    + _ASK,
    # The last answer ends with another token than earlier ones.
    "harmony": "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|msg|>' + m.content + ('<|return|>' "
    "if loop.last and m.role == 'assistant' else '<|im_end|>') }}{% endfor %}"
    "{{ '<|im_start|>assistant' if add_generation_prompt }}",
    # The system message is in the last user turn.
    "late_system": "{{ bos_token }}{% set s = messages[0].role == 'system' %}"
    "{% set turns = messages[1:] if s else messages %}{% for m in turns %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (messages[0].content + '\n\n' if s and loop.index0 >= turns | length - 2 else '') + "
    "m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    # The prompt opens a thinking block that a finished answer does not have.
    "r1": "{{ bos_token }}{% for m in messages %}{{ m.content if m.role == 'system' else '<|User|>' + "
    "m.content if m.role == 'user' else '<|Assistant|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}",
}
SPECIAL = (
    "<start_of_turn> <end_of_turn> <|head|> <|/head|> <|eot|> <|user|> <|system|> <|assistant|>"
)
SPECIAL += " <|end|> <|msg|> <|return|> <|User|> <|Assistant|> <s>"


def tokenizer_with(base, template):
    """The base model's tokenizer with a template of this name (or text) and its special tokens."""
    tokenizer = loading.load_tokenizer(base)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL.split(), "bos_token": "<s>"})
    tokenizer.chat_template = TEMPLATES.get(template, template)
    return tokenizer
