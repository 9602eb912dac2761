"""`tcl eval TASK`: the published metrics of a task. Each task has a file of its own."""

from __future__ import annotations

from tcl_cli._options import App
from tcl_cli.eval import classification as eval_classification
from tcl_cli.eval import grounding as eval_grounding
from tcl_cli.eval import retrieval as eval_retrieval
from tcl_cli.eval import statements as eval_statements
from tcl_cli.eval import vqa as eval_vqa

app = App(help="Evaluate a model with the published metrics of a task.", no_args_is_help=True)
app.command(epilog=eval_retrieval.EPILOG)(eval_retrieval.retrieval)
app.command(epilog=eval_vqa.EPILOG)(eval_vqa.vqa)
app.command(epilog=eval_statements.ENTAILMENT_EPILOG)(eval_statements.entailment)
app.command(epilog=eval_statements.NLVR2_EPILOG)(eval_statements.nlvr2)
app.command(epilog=eval_grounding.EPILOG)(eval_grounding.grounding)
app.command(epilog=eval_classification.EPILOG)(eval_classification.classification)
