//! The words of DeepSeek-V3.2's prompt format. They were learned as they stand: none may be changed.

/// Begins a text.
pub const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an answer.
pub const EOS: &str = "<｜end▁of▁sentence｜>";
/// Before a question.
pub const USER: &str = "<｜User｜>";
/// Before an answer.
pub const ASSISTANT: &str = "<｜Assistant｜>";
/// Before thoughts.
pub const THINK: &str = "<think>";
/// Behind thoughts, and where there are none.
pub const THOUGHT: &str = "</think>";
/// Marks the markup of tool calls.
pub const DSML: &str = "｜DSML｜";

/// All of them.
pub const CONTROLS: [&str; 7] = [BOS, EOS, USER, ASSISTANT, THINK, THOUGHT, DSML];

/// Begins the calls of an answer.
pub(super) const CALLS: &str = "\n\n<｜DSML｜function_calls>\n";
/// Ends them.
pub(super) const CALLS_END: &str = "\n</｜DSML｜function_calls>";
/// Begins a call, before the function's name.
pub(super) const INVOKE: &str = "<｜DSML｜invoke name=\"";
/// Ends it.
pub(super) const INVOKE_END: &str = "</｜DSML｜invoke>";
/// Begins an argument, before its name.
pub(super) const PARAMETER: &str = "<｜DSML｜parameter name=\"";
/// Ends it.
pub(super) const PARAMETER_END: &str = "</｜DSML｜parameter>";

/// Begins the results of an answer's calls.
pub(super) const RESULTS: &str = "\n\n<function_results>";
/// Ends them.
pub(super) const RESULTS_END: &str = "\n</function_results>\n\n";

/// Before the schema that answers shall have.
pub(super) const RESPONSE_FORMAT: &str =
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";
/// Before a developer's question.
pub(super) const DEVELOPER: &str = "\n\n# The user's message is: ";

/// Before and behind the schemas of the tools, one a line.
pub(super) const TOOLS: (&str, &str) = (
    "\n\n\
     ## Tools\n\n\
     You have access to a set of tools you can use to answer the user's question.\n\
     You can invoke functions by writing a \"<｜DSML｜function_calls>\" block like the following as part of your reply to the user:\n\
     <｜DSML｜function_calls>\n\
     <｜DSML｜invoke name=\"$FUNCTION_NAME\">\n\
     <｜DSML｜parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</｜DSML｜parameter>\n\
     ...\n\
     </｜DSML｜invoke>\n\
     <｜DSML｜invoke name=\"$FUNCTION_NAME2\">\n\
     ...\n\
     </｜DSML｜invoke>\n\
     </｜DSML｜function_calls>\n\n\
     String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The \"string\" attribute should be set to \"true\" for string type parameters and \"false\" for other types (numbers, booleans, arrays, objects).\n\n\
     If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:\n\n\
     <｜DSML｜function_calls>\n\
     ...\n\
     </｜DSML｜function_calls>\n\n\
     <function_results>\n\
     ...\n\
     </function_results>\n\n\
     <think>...thinking about results</think>\n\n\
     Here are the functions available in JSONSchema format:\n\
     <functions>\n",
    "</functions>\n",
);
